"""Parts that do not fit are named when the model is built, and again after one was replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import (
    AnchorGenerator,
    FastRCNNPredictor,
    MaskRCNN,
    MultiScaleRoIAlign,
)

SIZES = ((16,), (32,), (64,))


class Backbone(nn.Module):
    """Three maps of strides 4, 8 and 16."""

    out_channels = 8

    def __init__(self, output: Callable[[dict[str, Tensor]], Any] = dict, least: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.output = output
        self.least = least

    def forward(self, x: Tensor) -> Any:
        if x.shape[-1] < self.least:
            raise RuntimeError(f"images of {x.shape[-1]} pixels are too small")
        maps = [self.conv(x)]
        for _ in range(2):
            maps.append(nn.functional.max_pool2d(maps[-1], 2))
        return self.output({str(i): feature for i, feature in enumerate(maps)})


def build(backbone: nn.Module | None = None, **parts: Any) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(
        Backbone() if backbone is None else backbone,
        3,
        **{
            "min_size": 64,
            "rpn_anchor_generator": AnchorGenerator(SIZES, (1.0, 2.0)),
            **parts,
        },
    )


def reverse(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(reversed(maps.items()))


def one_without_area(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**maps, "2": maps["2"][..., :0]}


@pytest.mark.parametrize(
    "output, message",
    [
        (lambda maps: list(maps.values()), r"backbone returns a list.*\{str\(i\): x for i, x"),
        (lambda maps: None, "backbone returns a NoneType, expected a dict"),
        (lambda maps: {**maps, "1": [1, 2]}, "feature map '1' is a list, not a tensor"),
        (
            reverse,
            r"feature map '1', \[8, 8\], is larger than '2', \[4, 4\].*finest map comes first",
        ),
        (lambda maps: {**maps, "1": maps["1"][:, :5]}, "feature map '1'.* expected .N, 8, H, W"),
        (one_without_area, "feature map '2' is empty"),
    ],
)
def test_what_a_backbone_returns(output: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Backbone(output))


def test_a_backbone_that_needs_larger_images_is_checked_with_them() -> None:
    build(Backbone(least=200))
    with pytest.raises(ValueError, match="is larger than '2'"):
        build(Backbone(reverse, least=200))


def test_a_backbone_that_always_fails_raises_its_own_error() -> None:
    def typo(maps: dict[str, Tensor]) -> Any:
        return maps.valeus()  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="valeus") as raised:
        build(Backbone(typo))
    assert "the backbone fails with images of" in raised.value.__notes__[0]


class Anchors(AnchorGenerator):
    def forward(self, *args: Any) -> list[Tensor]:
        return [anchors[:-1] for anchors in super().forward(*args)]


def test_anchors_for_other_maps_are_counted() -> None:
    with pytest.raises(ValueError, match=r"anchors \[671, 4\], the feature maps have room for 672"):
        build(rpn_anchor_generator=Anchors(SIZES, (1.0, 2.0)))


def sampler_to(positive: list[int], negative: list[int]) -> Callable[..., Any]:
    def sample(labels: list[Tensor], generator: Any = None) -> tuple[list[Tensor], list[Tensor]]:
        return (
            [torch.tensor(positive, dtype=torch.int64) for _ in labels],
            [torch.tensor(negative, dtype=torch.int64) for _ in labels],
        )

    return sample


# Labels of the probe: index 0 is ignored, 1 negative, 2 positive, and so on.
REPLACEMENTS: dict[str, tuple[str, str, Any, str]] = {
    "matcher's type": ("rpn", "proposal_matcher", lambda g, b: b[:, 0], "returns torch.float32"),
    "matcher's shape": (
        "roi_heads", "proposal_matcher", lambda g, b: torch.zeros(1, dtype=torch.int64),
        r"roi_heads.proposal_matcher returns shape \[1\]: expected int64 \[3\]",
    ),
    "matcher's range": (
        "rpn", "proposal_matcher", lambda g, b: torch.ones(len(b), dtype=torch.int64),
        r"rpn.proposal_matcher returns indices from 1 to 1 .*expected -2 to 0",
    ),
    "sampler's type": ("rpn", "fg_bg_sampler", lambda labels, generator: labels, "two lists"),
    "sampler's range": ("rpn", "fg_bg_sampler", sampler_to([2], [5000]), "outside of its 672"),
    "sampled twice": ("roi_heads", "fg_bg_sampler", sampler_to([2, 2], [1]), "an index twice"),
    "ignored": ("rpn", "fg_bg_sampler", sampler_to([2, 3], [1]), "label is to be ignored"),
    "mixed up": ("rpn", "fg_bg_sampler", sampler_to([1], [2]), "a positive among the negatives"),
    "detached loss": (
        "roi_heads", "loss_mask", lambda logits, labels, targets: logits.sum().detach(),
        "roi_heads.loss_mask has no gradient",
    ),
    "constant loss": (
        "rpn", "loss_objectness", lambda logits, labels: torch.tensor(1.0),
        "rpn.loss_objectness has no gradient",
    ),
    "loss per box": (
        "roi_heads", "loss_classifier",
        lambda logits, labels: nn.functional.cross_entropy(logits, labels, reduction="none"),
        r"roi_heads.loss_classifier returns \[4\]: expected a scalar",
    ),
    "classes": (
        "roi_heads", "box_predictor", FastRCNNPredictor(1024, 7),
        "masks of 3 classes, box_predictor logits of 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", REPLACEMENTS)
def test_a_replaced_part_is_checked_at_its_first_use(name: str, training: bool) -> None:
    stage, part, replacement, message = REPLACEMENTS[name]
    model = build().train(training)
    image = torch.rand(3, 64, 64)
    setattr(getattr(model, stage), part, replacement)
    target = {
        "boxes": torch.tensor([[4.0, 4, 40, 40]]),
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
    }
    with pytest.raises(ValueError, match=message):
        model([image], [target] if training else None)
    assert model.training == training
    with pytest.raises(ValueError, match=message):  # not only the first time
        model([image], [target] if training else None)


def test_parts_are_checked_once() -> None:
    def count(calls: list[int], *_: Any) -> None:
        calls.append(1)

    model = build().eval()
    image = torch.rand(3, 64, 64)
    for copied in (model, copy.deepcopy(model)):
        calls: list[int] = []
        copied.backbone.register_forward_hook(partial(count, calls))
        copied([image])
        assert len(calls) == 1


def test_the_check_draws_no_random_number() -> None:
    model = build()
    state = torch.get_rng_state()
    model.rpn.fg_bg_sampler = partial(model.rpn.fg_bg_sampler)
    model.eval()([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_replaced_part_in_inference_mode() -> None:
    model = build().eval()
    model.rpn.nms = partial(model.rpn.nms)
    with torch.inference_mode():
        model([torch.rand(3, 64, 64)])


def test_pooling_from_the_maps_that_exist() -> None:
    """Three maps are enough for the default pools of "0" to "3", as in torchvision."""
    model = build(box_score_thresh=0.0).eval()
    assert len(model([torch.rand(3, 64, 64)])[0]["boxes"]) > 0
    with pytest.raises(ValueError, match="none of them is there"):
        build(mask_roi_pool=MultiScaleRoIAlign(["p2"], 14, 2))


def test_a_model_without_values_is_not_checked() -> None:
    with torch.device("meta"):
        build()
