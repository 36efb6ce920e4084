"""The stages, called one by one, give torchvision's types and values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import _utils as reference_utils
from torchvision.models.detection import backbone_utils, faster_rcnn, rpn, transform
from torchvision.models.detection import roi_heads as reference_heads
from torchvision.models.detection.image_list import ImageList as ReferenceImageList

import maskrcnn_scratch
from maskrcnn_scratch import MaskRCNN, resnet_fpn_backbone
from maskrcnn_scratch.backbone.resnet import ARCHITECTURES, resnet
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.structures import ImageList

OPTIONS: dict[str, Any] = {
    "num_classes": 4, "min_size": 96, "max_size": 160, "box_score_thresh": 0.0,
    "rpn_pre_nms_top_n_test": 200, "rpn_post_nms_top_n_test": 50, "box_detections_per_img": 20,
}  # fmt: skip
SIZES = [(96, 128), (90, 64)]


class Pair:
    """Our model and torchvision's with the same weights, and the inputs of their stages.

    In float64: in float32 the order of two proposals with nearly equal scores depends on which
    convolution PyTorch picks for the memory format and the number of threads.
    """

    def __init__(self, training: bool) -> None:
        torch.manual_seed(0)
        self.ours = MaskRCNN(
            resnet_fpn_backbone("resnet18", None, norm_layer=torch.nn.BatchNorm2d), **OPTIONS
        )
        self.theirs = torchvision.models.detection.MaskRCNN(
            backbone_utils.resnet_fpn_backbone(
                backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d
            ),
            **OPTIONS,
        )
        self.theirs.load_state_dict(self.ours.state_dict(), strict=True)
        for model in (self.ours, self.theirs):
            model.double().train(training)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.zeros(2, 3, 96, 128, dtype=torch.float64)
        for image, (height, width) in zip(self.images, SIZES, strict=True):
            image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
        with torch.no_grad():
            self.features = self.theirs.backbone.eval()(self.images)
        self.targets = [
            {
                "boxes": torch.tensor([[4.0, 5, 60, 50], [20, 30, 90, 80]], dtype=torch.float64),
                "labels": torch.tensor([1, 3]),
                "masks": torch.ones(2, 96, 128, dtype=torch.uint8),
            },
            {
                "boxes": torch.tensor([[8.0, 10, 50, 70]], dtype=torch.float64),
                "labels": torch.tensor([2]),
                "masks": torch.ones(1, 90, 64, dtype=torch.uint8),
            },
        ]
        self.proposals = [
            torch.cat([boxes + shift for shift in (0.0, 1.0, 7.0, 20.0)])
            for boxes in (target["boxes"] for target in self.targets)
        ]


@pytest.fixture(scope="module")
def evaluating() -> Pair:
    return Pair(training=False)


@pytest.fixture(scope="module")
def training() -> Pair:
    return Pair(training=True)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def both(pair: Pair, call: Any) -> tuple[Any, Any]:
    """The call on our model and on torchvision's, with the same random numbers."""
    outputs = []
    for model in (pair.ours, pair.theirs):
        torch.manual_seed(3)
        outputs.append(call(model))
    return outputs[0], outputs[1]


def assert_same(ours: Any, theirs: Any) -> None:
    if not isinstance(theirs, (list, tuple)):  # torchvision annotates some tuples as lists
        assert type(ours) is type(theirs)
    if isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name in theirs:
            assert_same(ours[name], theirs[name])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("list_class", [ImageList, ReferenceImageList])
@pytest.mark.parametrize("mode", ["evaluating", "training"])
def test_rpn(mode: str, list_class: Any, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(mode)
    images = list_class(pair.images, SIZES)
    targets = pair.targets if mode == "training" else None
    ours = both(pair, lambda model: model.rpn(images, pair.features, targets))
    reference = ReferenceImageList(pair.images, SIZES)
    theirs = both(pair, lambda model: model.rpn(reference, pair.features, targets))
    assert_same(ours[0], theirs[1])
    boxes, losses = ours[0]
    assert len(boxes) == 2 and min(map(len, boxes)) > 5
    assert len(losses) == (2 if mode == "training" else 0)


def test_rpn_without_targets(training: Pair) -> None:
    with pytest.raises(ValueError, match="targets should not be None"):
        training.ours.rpn(ImageList(training.images, SIZES), training.features)


@pytest.mark.parametrize("mode", ["evaluating", "training"])
def test_roi_heads(mode: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(mode)
    targets = pair.targets if mode == "training" else None
    ours, theirs = both(
        pair,
        lambda model: model.roi_heads(pair.features, list(pair.proposals), SIZES, targets),
    )
    assert_same(ours, theirs)
    detections, losses = ours
    if mode == "training":
        assert list(losses) == ["loss_classifier", "loss_box_reg", "loss_mask"]
    else:
        assert all(len(result["scores"]) > 5 for result in detections)
        originals = [(192, 256), (45, 32)]
        ours, theirs = (
            model.transform.postprocess(copy.deepcopy(found), SIZES, originals)
            for model, found in ((pair.ours, ours[0]), (pair.theirs, theirs[0]))
        )
        assert_same(ours, theirs)


def test_roi_heads_without_proposals(evaluating: Pair) -> None:
    """In one image, and in all of them."""
    none = torch.zeros(0, 4, dtype=torch.float64)
    for proposals in ([evaluating.proposals[0], none], [none] * 2):
        detections, _ = evaluating.ours.roi_heads(evaluating.features, proposals, SIZES)
        assert len(detections[1]["boxes"]) == len(detections[1]["masks"]) == 0
        assert (len(detections[0]["boxes"]) > 0) == (len(proposals[0]) > 0)


def test_postprocess_in_training_changes_nothing(training: Pair) -> None:
    results: list[dict[str, Tensor]] = [{"boxes": torch.rand(2, 4)}]
    assert training.ours.transform.postprocess(results, SIZES[:1], SIZES[:1]) is results


@pytest.mark.parametrize("mode", ["evaluating", "training"])
def test_steps_of_the_rpn(mode: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(mode)
    maps = list(pair.features.values())
    reference = ReferenceImageList(pair.images, SIZES)
    objectness, deltas = pair.theirs.rpn.head(maps)
    levels = [level[0].numel() for level in objectness]
    anchors = pair.theirs.rpn.anchor_generator(reference, maps)
    logits, deltas = rpn.concat_box_prediction_layers(objectness, deltas)
    boxes = pair.theirs.rpn.box_coder.decode(deltas, anchors).view(2, -1, 4)
    assert_same(*both(pair, lambda m: m.rpn.filter_proposals(boxes, logits, SIZES, levels)))
    labels, matched = pair.theirs.rpn.assign_targets_to_anchors(anchors, pair.targets)
    assert_same(
        *both(pair, lambda model: model.rpn.assign_targets_to_anchors(anchors, pair.targets))
    )
    encoded = pair.theirs.rpn.box_coder.encode(matched, anchors)
    assert_same(*both(pair, lambda model: model.rpn.compute_loss(logits, deltas, labels, encoded)))
    anchors, empty = [boxes.float() for boxes in anchors], [{"boxes": torch.zeros(0, 4)}] * 2
    assert_same(*both(pair, lambda model: model.rpn.assign_targets_to_anchors(anchors, empty)))


def test_steps_of_the_roi_heads(evaluating: Pair) -> None:
    pair = evaluating
    count = sum(map(len, pair.proposals))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    deltas = torch.randn(count, 16, generator=generator, dtype=torch.float64)
    assert_same(
        *both(
            pair,
            lambda model: model.roi_heads.postprocess_detections(
                logits, deltas, pair.proposals, SIZES
            ),
        )
    )
    assert_same(
        *both(
            pair,
            lambda model: model.roi_heads.select_training_samples(
                list(pair.proposals), pair.targets
            ),
        )
    )
    gt_boxes, gt_labels = ([target[key] for target in pair.targets] for key in ("boxes", "labels"))
    for objects in (gt_boxes, [boxes[:0] for boxes in gt_boxes]):
        assert_same(
            *both(
                pair,
                lambda model, objects=objects: model.roi_heads.assign_targets_to_proposals(
                    pair.proposals, objects, gt_labels
                ),
            )
        )
    for model in (pair.ours, pair.theirs):
        assert model.roi_heads.has_keypoint() is False
        model.roi_heads.check_targets(pair.targets)
        for targets, message in ((None, "should not be None"), ([{}], "have a boxes key")):
            with pytest.raises(ValueError, match=message):
                model.roi_heads.check_targets(targets)


@pytest.mark.parametrize("mode", ["evaluating", "training"])
def test_resize(mode: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(mode)
    image = torch.rand(3, 70, 100, generator=torch.Generator().manual_seed(0))
    target = {"boxes": torch.tensor([[3.0, 4, 50, 60]]), "masks": torch.ones(1, 70, 100).byte()}
    assert_same(*both(pair, lambda model: model.transform.resize(image, dict(target))))
    assert_same(*both(pair, lambda model: model.transform.resize(image)))


def test_the_transform_prints_as_torchvisions(evaluating: Pair) -> None:
    assert repr(evaluating.ours.transform) == repr(evaluating.theirs.transform)


@pytest.mark.slow
def test_torchvisions_sampler_replaces_ours(training: Pair) -> None:
    """It returns masks and takes no generator."""
    model, found = training.ours, []
    pairs = zip(training.images, SIZES, strict=True)
    images = [image[:, :height, :width] for image, (height, width) in pairs]
    stages = (model.rpn, model.roi_heads)
    own = [stage.fg_bg_sampler for stage in stages]
    try:
        for package in (maskrcnn_scratch, reference_utils):
            for stage in stages:
                stage.fg_bg_sampler = package.BalancedPositiveNegativeSampler(32, 0.5)
            torch.manual_seed(3)
            found.append(model.losses(images, training.targets))
    finally:
        for stage, sampler in zip(stages, own, strict=True):
            stage.fg_bg_sampler = sampler
    assert_same(*found)


def test_box_coder() -> None:
    torch.manual_seed(0)
    weights = (10.0, 10.0, 5.0, 5.0)
    ours, theirs = BoxCoder(weights), reference_utils.BoxCoder(weights)
    boxes, references = (torch.rand(9, 4) + torch.tensor([0, 0, 2, 2]) for _ in range(2))
    assert_same(ours.encode_single(boxes, references), theirs.encode_single(boxes, references))
    deltas = torch.randn(9, 12)
    assert_same(ours.decode_single(deltas, references), theirs.decode_single(deltas, references))


def test_image_list() -> None:
    images = ImageList(torch.zeros(2, 3, 96, 128), SIZES)
    assert images.image_sizes == SIZES
    assert images.to("cpu").image_sizes == SIZES
    assert images.sizes.tolist() == [[96, 128], [90, 64]]


@pytest.mark.slow
def test_integer_boxes_are_converted(training: Pair) -> None:
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0)).double()
    losses = []
    for dtype in (torch.float64, torch.int64, torch.int16):
        target = {**training.targets[0], "boxes": training.targets[0]["boxes"].to(dtype)}
        torch.manual_seed(0)
        losses.append(training.ours([image], [target]))
    assert_same(losses[1], losses[0])
    assert_same(losses[2], losses[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_body_has_torchvisions_parameters(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = resnet(name), torchvision.models.get_model(name)
    reference = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == reference


def test_resnext_equals_torchvisions() -> None:
    torch.manual_seed(0)
    ours = resnet("resnext50_32x4d").eval()
    theirs = torchvision.models.resnext50_32x4d().eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = torch.rand(1, 3, 64, 64)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        expected = layer(expected)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    """And the same random numbers afterwards."""
    states = []
    for package in (maskrcnn_scratch, torchvision.models.detection):
        torch.manual_seed(0)
        model = getattr(package, name)(weights=None, weights_backbone=None)
        states.append((model.state_dict(), torch.get_rng_state()))
    (ours, rng), (theirs, reference_rng) = states
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(rng, reference_rng)


@pytest.mark.parametrize(
    "module", [rpn, transform, faster_rcnn, reference_heads, reference_utils, backbone_utils]
)
def test_names_of_torchvision_are_importable_from_the_top(module: Any) -> None:
    missing = {
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and value.__module__.startswith("torchvision.models.detection")
        and not name.endswith("_Weights")
        and not hasattr(maskrcnn_scratch, name)
    }
    # Of other detectors; and the box coders and losses of RetinaNet and SSD.
    assert missing <= {"SSDMatcher", "BoxLinearCoder"}
