"""Single modules against torchvision's, with options that the parity checks do not use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.models.detection import anchor_utils, backbone_utils, image_list
from torchvision.models.detection.transform import GeneralizedRCNNTransform as ReferenceTransform
from torchvision.ops import feature_pyramid_network as reference_fpn

from maskrcnn_scratch import AnchorGenerator, MultiScaleRoIAlign, resnet_fpn_backbone
from maskrcnn_scratch.backbone import FeaturePyramidNetwork, FrozenBatchNorm2d, LastLevelP6P7
from maskrcnn_scratch.backbone.resnet import ARCHITECTURES, resnet
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.roi_heads import MaskRCNNPredictor
from maskrcnn_scratch.rpn import RPNHead
from maskrcnn_scratch.structures import ImageList
from maskrcnn_scratch.transform import GeneralizedRCNNTransform
from tests.model.swapped import images, targets

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"min_size": 120, "max_size": 200},
        {"min_size": (80, 96, 111), "max_size": 180},
        {"min_size": 100, "max_size": 130, "size_divisible": 1},
        {"min_size": 100, "max_size": 130, "fixed_size": (90, 70)},
        {"min_size": 100, "max_size": 130, "_skip_resize": True},
    ],
)
def test_transform_equals_torchvisions(options: dict[str, Any], training: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for height, width in ((97, 143), (300, 61), (128, 128)):
        images.append(torch.rand(3, height, width, generator=generator))
        masks = torch.rand(2, height, width, generator=generator) > 0.5
        boxes = torch.tensor([[3.3, 4.4, 50.5, 40.1], [0.0, 0.0, width, height]])
        targets.append({"boxes": boxes, "masks": masks.to(torch.uint8)})
    ours = GeneralizedRCNNTransform(image_mean=MEAN, image_std=STD, **options).train(training)
    reference = ReferenceTransform(image_mean=MEAN, image_std=STD, **options).train(training)
    torch.manual_seed(3)
    batch, resized = ours(images, targets)
    torch.manual_seed(3)
    reference_batch, reference_targets = reference(images, targets)
    assert torch.equal(batch.tensors, reference_batch.tensors)
    assert batch.image_sizes == [tuple(size) for size in reference_batch.image_sizes]
    assert resized is not None
    for one, other in zip(resized, reference_targets, strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["masks"], other["masks"])


def test_keypoints_are_resized_as_torchvision_does() -> None:
    keypoints = torch.rand(2, 5, 3) * 60
    target = {**targets()[0], "keypoints": keypoints}
    image = images()[0]
    for min_size in (64, 100):
        ours = GeneralizedRCNNTransform(min_size, 1000, [0.5] * 3, [0.5] * 3)
        theirs = ReferenceTransform(min_size, 1000, [0.5] * 3, [0.5] * 3)
        resized, expected = ours([image], [target])[1], theirs([image], [dict(target)])[1]
        assert resized is not None
        torch.testing.assert_close(resized[0]["keypoints"], expected[0]["keypoints"])
    assert torch.equal(target["keypoints"], keypoints)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_resnet_has_torchvisions_parameters(name: str) -> None:
    with torch.device("meta"):
        ours = resnet(name)
        theirs = torchvision.models.get_model(name)
    reference = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == reference


def test_resnet18_fpn_equals_torchvisions() -> None:
    """Basic blocks, fewer stages, and the pyramid's levels by name."""
    ours = resnet_fpn_backbone(backbone_name="resnet18", returned_layers=[2, 3, 4]).eval()
    theirs = backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4]
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features, reference = ours(image), theirs(image)
    assert list(features) == list(reference) == ["0", "1", "2", "pool"]
    for name, feature in features.items():
        torch.testing.assert_close(feature, reference[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trainable_layers", range(6))
def test_freeze_equals_torchvisions(trainable_layers: int) -> None:
    with torch.device("meta"):
        models = [
            build(backbone_name="resnet50", weights=None, trainable_layers=trainable_layers,
                  norm_layer=torch.nn.BatchNorm2d)
            for build in (resnet_fpn_backbone, backbone_utils.resnet_fpn_backbone)
        ]  # fmt: skip
    frozen = [{n for n, p in model.named_parameters() if not p.requires_grad} for model in models]
    assert frozen[0] == frozen[1]


@pytest.mark.parametrize("in_channels", [16, 24])  # P6 from P5, and from C5
def test_p6_p7_equal_torchvisions(in_channels: int) -> None:
    channels = [8, 12, in_channels]
    ours = FeaturePyramidNetwork(channels, 16, LastLevelP6P7(in_channels, 16))
    theirs = reference_fpn.FeaturePyramidNetwork(
        channels, 16, reference_fpn.LastLevelP6P7(in_channels, 16)
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    stages = {
        str(i): torch.randn(2, c, 40 >> i, 56 >> i) for i, c in enumerate(channels)
    }  # fmt: skip
    with torch.no_grad():
        features, reference = ours(stages), theirs(stages)
    assert list(features) == list(reference) == ["0", "1", "2", "p6", "p7"]
    for name, feature in features.items():
        assert torch.equal(feature, reference[name])


@pytest.mark.parametrize(
    "sizes, ratios",
    [
        (((32,), (64,)), (0.5, 1.0, 2.0)),
        ((16, 48), ((1.0,), (0.5, 2.0))),
        (((8, 11, 13), (20, 30)), ((0.7, 1.3), (1.0,))),
    ],
)
def test_anchors_equal_torchvisions(sizes: Any, ratios: Any) -> None:
    ours = AnchorGenerator(sizes, ratios)
    theirs = anchor_utils.AnchorGenerator(sizes, ratios)
    assert ours.num_anchors_per_location() == theirs.num_anchors_per_location()
    images = torch.zeros(2, 3, 100, 130)
    features = [torch.zeros(2, 1, 25, 33), torch.zeros(2, 1, 13, 17)]
    sizes_of_images = [(100, 130), (90, 120)]
    anchors = ours(ImageList(images, torch.tensor(sizes_of_images)), features)
    reference = theirs(image_list.ImageList(images, sizes_of_images), features)
    assert len(anchors) == len(reference) == 2
    assert torch.equal(anchors[0], reference[0])


def test_old_checkpoints_load() -> None:
    """Keys of torchvision 0.12, when the RPN's convolution was not a block."""
    head = RPNHead(8, 3)
    old = {key.replace("conv.0.0.", "conv."): value for key, value in head.state_dict().items()}
    assert "conv.weight" in old
    kept = dict(old)
    other = RPNHead(8, 3)
    other.load_state_dict(old, strict=True)
    assert torch.equal(other.conv[0][0].weight, head.conv[0][0].weight)
    assert old.keys() == kept.keys()  # the caller's dict is not modified


def test_pooling_levels_at_their_borders() -> None:
    """A box of exactly 224 x 224 belongs to level 4; scales are computed for each batch."""
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    sides = torch.tensor([1.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 3000.0])
    boxes = torch.stack((sides * 0, sides * 0, sides, sides), dim=1)
    assert pool.map_levels(boxes, [1 / 4, 1 / 8, 1 / 16, 1 / 32]).tolist() == [
        0, 0, 1, 1, 2, 2, 3, 3,
    ]  # fmt: skip
    for side in (64, 128):  # the second batch must not use the scales of the first
        features = {str(i): torch.full((1, 1, 16 >> i, 16 >> i), float(side)) for i in range(4)}
        rois = torch.tensor([[0.0, side / 4, side / 4, side * 3 / 4, side * 3 / 4]])
        pooled = pool(features, rois, [(side, side)])
        assert torch.equal(pooled, torch.full((1, 1, 7, 7), float(side)))


def test_a_missing_feature_map_is_named() -> None:
    """Where none of them is there; torchvision pools from those that are."""
    maps = {"0": torch.rand(1, 1, 8, 8)}
    rois = torch.tensor([[0.0, 3, 4, 20, 25]])
    pooled = MultiScaleRoIAlign(["0", "9"], 7, 2)(maps, rois, [(32, 32)])
    assert torch.equal(pooled, MultiScaleRoIAlign(["0"], 7, 2)(maps, rois, [(32, 32)]))
    with pytest.raises(ValueError, match=r"featmap_names asks for \['9'\]"):
        MultiScaleRoIAlign(["9"], 7, 2)(maps, rois, [(32, 32)])


@pytest.mark.parametrize("as_list", [True, False])
def test_a_traced_pool_takes_any_number_of_boxes(as_list: bool) -> None:
    class Pool(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = MultiScaleRoIAlign(["0", "1"], 7, 2)

        def forward(self, fine: Tensor, coarse: Tensor, boxes: Tensor) -> Tensor:
            rois = torch.cat((boxes[:, :1] * 0, boxes), dim=1)
            return self.pool({"0": fine, "1": coarse}, [boxes] if as_list else rois, [(64, 64)])

    maps = (torch.rand(1, 2, 16, 16), torch.rand(1, 2, 8, 8))
    boxes = torch.tensor([[3.0, 4, 20, 30], [0, 0, 64, 64], [9, 9, 12, 20]])
    traced = torch.jit.trace(Pool(), (*maps, boxes[:2]))
    for count in (3, 1, 0):
        assert torch.equal(traced(*maps, boxes[:count]), Pool()(*maps, boxes[:count]))


def test_torchscript_is_refused_in_one_line() -> None:
    model = small_maskrcnn(3, widths=(8, 8, 8, 8))
    for module in (model, MultiScaleRoIAlign(["0"], 7, 2)):
        with pytest.raises(TypeError, match=r"^TorchScript is not supported: .*\.export") as raised:
            torch.jit.script(module)
        assert "\n" not in str(raised.value)


def test_frozen_batch_norm_after_its_buffers_change() -> None:
    norm, x = FrozenBatchNorm2d(3), torch.randn(1, 3, 2, 2)

    def expected() -> Tensor:
        mean, var, weight, bias = norm.running_mean, norm.running_var, norm.weight, norm.bias
        return F.batch_norm(x, mean, var, weight, bias, eps=norm.eps)

    with torch.inference_mode():
        torch.testing.assert_close(norm(x), expected())
    assert norm.scale_and_bias()[0] is norm.scale_and_bias()[0]
    norm.running_var.fill_(4.0)  # in place
    torch.testing.assert_close(norm(x), expected())
    norm.load_state_dict({**norm.state_dict(), "bias": torch.ones(3)}, assign=True)
    torch.testing.assert_close(norm(x), expected())
    norm(x.requires_grad_()).sum().backward()  # with values cached in inference mode


def test_masks_of_given_labels_equal_those_of_all_classes() -> None:
    torch.manual_seed(0)
    predictor, x = MaskRCNNPredictor(16, 8, 5), torch.randn(6, 16, 7, 7)
    labels = torch.tensor([0, 1, 4, 2, 2, 3])
    every = predictor(x)
    torch.testing.assert_close(predictor(x, labels), every[torch.arange(6), labels])


@pytest.mark.parametrize("accepts_labels", [True, False])
def test_mask_predictors_with_and_without_labels(accepts_labels: bool) -> None:
    calls = []

    class CustomPredictor(MaskRCNNPredictor):
        if accepts_labels:

            def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
                calls.append("labels" if labels is not None else "all")
                return super().forward(input, labels)

        else:

            def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
                calls.append("all")
                return super().forward(input)

    torch.manual_seed(0)
    model = small_maskrcnn(5, min_size=96, box_score_thresh=0.0).eval()
    expected = model([torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))])[0]
    assert len(expected["masks"]) > 0
    custom = CustomPredictor(64, 64, 5)
    custom.load_state_dict(model.roi_heads.mask_predictor.state_dict())
    model.roi_heads.mask_predictor = custom
    found = model([torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))])[0]
    # The first call checks the new part, with masks of all classes; then come the detections.
    assert calls[-1] == ("labels" if accepts_labels else "all")
    torch.testing.assert_close(found["masks"], expected["masks"])


def test_resized_size_of_a_symbol_and_a_number() -> None:
    """An export in which one side of the image varies: neither side may be fixed to the longer."""
    transform = GeneralizedRCNNTransform(80, 200, MEAN, STD).eval()

    class Resized(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            size = transform.resized_size(image.shape[1], image.shape[2])
            return torch.stack([torch.scalar_tensor(side) for side in size])

    width = torch.export.Dim("width", min=2, max=1000)
    program = torch.export.export(
        Resized(), (torch.rand(3, 40, 60),), dynamic_shapes={"image": {2: width}}
    )
    for side in (60, 20, 40, 900):
        found = program.module()(torch.rand(3, 40, side))
        assert tuple(found.tolist()) == transform.resized_size(40, side)
