"""The model's contract is torchvision's: inputs, outputs, batches, custom parts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign as TorchvisionPooler

from maskrcnn_scratch import (
    AnchorGenerator,
    FastRCNNPredictor,
    MaskRCNN,
    MaskRCNNPredictor,
    MultiScaleRoIAlign,
    RPNHead,
    TwoMLPHead,
    maskrcnn_resnet50_fpn,
)
from maskrcnn_scratch.structures import ImageList


@pytest.fixture
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in ((90, 120), (100, 64))]


def target(image: Tensor, count: int) -> dict[str, Tensor]:
    height, width = image.shape[-2:]
    boxes = torch.tensor([[4.0, 5.0, width - 6.0, height - 8.0]]).repeat(count, 1)
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    masks[:, 10:40, 10:40] = 1
    return {"boxes": boxes, "labels": torch.ones(count, dtype=torch.int64), "masks": masks}


def test_inference_returns_torchvisions_dicts(small_model: MaskRCNN, images: list[Tensor]) -> None:
    results = small_model(images)
    assert len(results) == 2
    for image, result in zip(images, results, strict=True):
        assert list(result) == ["boxes", "labels", "scores", "masks"]
        count = len(result["boxes"])
        assert 0 < count <= 100
        assert result["boxes"].shape == (count, 4)
        assert result["boxes"].dtype == torch.float32
        assert result["labels"].shape == result["scores"].shape == (count,)
        assert result["labels"].dtype == torch.int64
        assert result["labels"].min() >= 1
        assert result["masks"].shape == (count, 1, *image.shape[-2:])
        assert result["masks"].min() >= 0 and result["masks"].max() <= 1
        assert (result["scores"].diff() <= 0).all()


def test_a_batch_gives_what_each_image_alone_gives(small_model: MaskRCNN) -> None:
    """Sizes whose padding agrees, so that only the batch differs."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 96, 128, generator=generator) for _ in range(3)]
    together = small_model(images)
    for image, result in zip(images, together, strict=True):
        (alone,) = small_model([image])
        assert torch.equal(alone["labels"], result["labels"])
        torch.testing.assert_close(alone["boxes"], result["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(alone["scores"], result["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone["masks"], result["masks"], rtol=0, atol=1e-4)


def test_no_detection_at_all(small_model: MaskRCNN, images: list[Tensor]) -> None:
    model = copy.deepcopy(small_model)
    model.roi_heads.score_thresh = 1.0
    for image, result in zip(images, model(images), strict=True):
        assert result["boxes"].shape == (0, 4)
        assert result["masks"].shape == (0, 1, *image.shape[-2:])


def test_stages_hold_the_intermediate_results_of_the_detections(
    small_model: MaskRCNN, images: list[Tensor]
) -> None:
    stages = small_model.run_stages(images)
    detections, proposals = stages.detections, stages.proposals
    for n, result in enumerate(stages.results):
        count = int(detections.counts[n])
        assert len(result["boxes"]) == count
        assert torch.equal(result["scores"], detections.scores[n, :count])
        # The score of a detection is the softmax of its label, at its proposal ...
        rows = stages.class_logits[n, detections.proposal_indices[n, :count]].softmax(1)
        of_label = rows.gather(1, detections.labels[n, :count, None])[:, 0]
        assert torch.equal(of_label, result["scores"])
        # ... and the score of a proposal is the objectness of its anchor.
        valid = slice(0, int(proposals.counts[n]))
        anchor_indices = proposals.anchor_indices[n, valid]
        objectness = stages.objectness[n, anchor_indices].sigmoid()
        assert torch.equal(objectness, proposals.scores[n, valid])


def test_training_gives_the_five_losses(small_model: MaskRCNN, images: list[Tensor]) -> None:
    model = copy.deepcopy(small_model).train()
    losses = model(images, [target(images[0], 2), target(images[1], 0)])
    assert list(losses) == [
        "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg",
    ]  # fmt: skip
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_and_model_may_have_different_float_dtypes(dtype: torch.dtype) -> None:
    """Boxes from numpy are float64."""
    model = one_map_model().to(dtype)
    image = torch.rand(3, 96, 128, dtype=dtype)
    one = target(image, 2)
    found = []
    for box_dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        found.append(model([image], [{**one, "boxes": one["boxes"].to(box_dtype)}]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_the_pixels(training: bool) -> None:
    model = one_map_model(box_score_thresh=0.0).train(training)
    image = torch.rand(3, 96, 128, requires_grad=True)
    if training:
        loss = sum(model([image], [target(image.detach(), 2)]).values())
    else:
        loss = model([image])[0]["scores"].sum()
    loss.backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_a_mask_branch_can_be_removed(small_model: MaskRCNN, images: list[Tensor]) -> None:
    model = copy.deepcopy(small_model)
    model.roi_heads.mask_roi_pool = None
    assert "masks" not in model(images)[0]


def test_models_pickle(small_model: MaskRCNN, images: list[Tensor]) -> None:
    copied = pickle.loads(pickle.dumps(small_model))
    for mine, theirs in zip(copied(images), small_model(images), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("wrong", ["pretrained", "box_scor_thresh"])
def test_unknown_arguments_are_refused_before_anything_is_downloaded(wrong: str) -> None:
    with pytest.raises(TypeError, match=f"'{wrong}' is not an argument of MaskRCNN"):
        maskrcnn_resnet50_fpn(weights="DEFAULT", **{wrong: True})


def test_losses_in_eval_mode_have_no_side_effect_and_are_deterministic(
    small_model: MaskRCNN, images: list[Tensor]
) -> None:
    before = copy.deepcopy(small_model.state_dict())
    inputs = copy.deepcopy((images, [target(image, 2) for image in images]))
    given = copy.deepcopy(inputs)
    rng = torch.get_rng_state()
    first, second = (small_model.losses(*given) for _ in range(2))
    assert first == second
    assert torch.equal(rng, torch.get_rng_state())
    assert not small_model.training
    for key, value in small_model.state_dict().items():
        assert torch.equal(value, before[key])
    for image, original in zip(given[0], inputs[0], strict=True):
        assert torch.equal(image, original)
    for one, original in zip(given[1], inputs[1], strict=True):
        assert all(torch.equal(one[key], original[key]) for key in original)


def test_torchvisions_fine_tuning_tutorial() -> None:
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=64, max_size=96)
    in_features = model.roi_heads.box_predictor.cls_score.in_features
    model.roi_heads.box_predictor = FastRCNNPredictor(in_features, 2)
    in_features_mask = model.roi_heads.mask_predictor.conv5_mask.in_channels
    model.roi_heads.mask_predictor = MaskRCNNPredictor(in_features_mask, 256, 2)
    image = torch.rand(3, 64, 80)
    losses = model([image], [target(image, 1)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    model.eval()
    assert model([image])[0]["masks"].shape[1:] == (1, 64, 80)


class OneMapBackbone(nn.Sequential):
    """A backbone as in torchvision's tutorial: one feature map, 12 channels, stride 16."""

    out_channels = 12

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 12, 16, stride=16), nn.ReLU())


def one_map_model(**kwargs: Any) -> MaskRCNN:
    parts: dict[str, Any] = {
        "num_classes": 3,
        "rpn_anchor_generator": AnchorGenerator(((32, 64),), ((0.5, 1.0, 2.0),)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2),
        "mask_roi_pool": MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        "min_size": 128,
    }
    return MaskRCNN(OneMapBackbone(), **{**parts, **kwargs})


def test_custom_backbone_with_one_feature_map() -> None:
    model = one_map_model().eval()
    image = torch.rand(3, 130, 150)
    assert model([image])[0]["masks"].shape[1:] == (1, 130, 150)


def test_parts_are_replaced_by_argument() -> None:
    """Any object that fits can be passed: here a head, an NMS and a loss."""

    class Head(nn.Module):
        def forward(self, pooled: Tensor) -> Tensor:
            return pooled.mean((2, 3))

    model = one_map_model(
        num_classes=None,
        box_head=Head(),
        box_predictor=FastRCNNPredictor(12, 3),
        mask_predictor=MaskRCNNPredictor(256, 8, 3),
    )
    image = torch.rand(3, 128, 128)
    model.roi_heads.loss_classifier = lambda logits, labels: logits.sum() * 0 + 7
    assert model.losses([image], [target(image, 1)])["loss_classifier"] == 7

    def keep_the_first(boxes: Tensor, scores: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        kept = torch.zeros(len(boxes), 3, dtype=torch.int64)
        return kept, torch.ones(len(boxes), dtype=torch.int64)

    model.eval().roi_heads.nms = keep_the_first
    assert len(model([image])[0]["boxes"]) == 1


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"rpn_anchor_generator": AnchorGenerator(((32,), (64,)), (1.0,))}, "1 feature maps.* 2"),
        ({"rpn_head": RPNHead(12, 5)}, r"predicts \[5\] logits.*\[6\] anchors"),
        ({"box_roi_pool": MultiScaleRoIAlign(["1"], 7, 2)}, "box_roi_pool pools from .'1'."),
        (
            {"box_roi_pool": TorchvisionPooler(["0"], 7, 2)},
            r"box_roi_pool, a torchvision.*\[R, 5\]",
        ),
        ({"box_head": TwoMLPHead(9, 9)}, r"box_head, a .*TwoMLPHead, cannot take \[1, 12, 7, 7\]"),
        (
            {
                "mask_predictor": MaskRCNNPredictor(256, 8, 5),
                "num_classes": None,
                "box_head": TwoMLPHead(12 * 49, 8),
                "box_predictor": FastRCNNPredictor(8, 3),
            },
            "masks of 5 classes, box_predictor logits of 3",
        ),
        ({"image_std": (0.2, 0.2)}, "image_mean is for 3 channels, image_std for 2"),
        ({"mask_head": nn.Identity()}, r"mask_predictor, a .* cannot take \[1, 12, 14, 14\]"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"num_classes": None}, "either num_classes or mask_predictor"),
    ],
)
def test_parts_that_do_not_fit_are_named_when_the_model_is_built(
    parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        one_map_model(**parts)


def test_a_backbone_without_out_channels() -> None:
    with pytest.raises(ValueError, match="out_channels"):
        MaskRCNN(nn.Sequential(nn.Conv2d(3, 8, 1)), num_classes=2)


@pytest.mark.parametrize(
    "images, error, message",
    [
        ([], ValueError, "empty"),
        ([torch.rand(64, 64)], ValueError, r"images\[0\] is \[64, 64\]"),
        ([torch.rand(3, 64, 64), "cat.jpg"], ValueError, r"images\[1\] is str"),
        ([torch.rand(1, 64, 64)], ValueError, r"images\[0\].*3 channels"),
        ([torch.rand(3, 0, 64)], ValueError, r"images\[0\].*sides"),
        ([torch.zeros(3, 64, 64, dtype=torch.uint8)], TypeError, r"images\[0\] is of torch.uint8"),
        ([torch.rand(3, 9, 9), torch.rand(3, 9, 9).double()], ValueError, r"images\[1\].*float64"),
    ],
)
def test_invalid_images_are_named(
    small_model: MaskRCNN, images: list[Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small_model(images)


def test_images_on_another_device_or_of_another_dtype_than_the_model(small_model: MaskRCNN) -> None:
    elsewhere = copy.deepcopy(small_model).to("meta")
    with pytest.raises(ValueError, match=r"torch.float32 on cpu, the model expects .*32 on meta"):
        elsewhere([torch.rand(3, 64, 64)])
    with pytest.raises(ValueError, match=r"torch.float64 on cpu, the model expects .*32 on cpu"):
        small_model([torch.rand(3, 64, 64).double()])


@pytest.mark.parametrize("fill", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_non_finite_and_huge_pixels_give_finite_boxes(small_model: MaskRCNN, fill: float) -> None:
    image = torch.rand(3, 64, 64)
    image[:, 10:20] = fill
    (result,) = small_model([image])
    assert torch.isfinite(result["boxes"]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_tiny_and_thin_images(small_model: MaskRCNN, size: tuple[int, int]) -> None:
    (result,) = small_model([torch.rand(3, *size)])
    assert result["masks"].shape[2:] == size


def test_the_cache_of_anchors_is_bounded() -> None:
    generator = AnchorGenerator(((16,),), (1.0,))
    for side in range(1, 40):
        images = ImageList(torch.zeros(1, 3, side * 4, 64), torch.tensor([[side * 4, 64]]))
        anchors = generator(images, [torch.zeros(1, 1, side, 16)])[0]
        assert len(anchors) == side * 16
    assert len(generator._cache) <= 16
    assert len(pickle.dumps(generator)) < 10_000, "the cache is not pickled"
