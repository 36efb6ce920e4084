"""What a part may return: scores of NMS, no selection, class-agnostic boxes and masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn_scratch import FastRCNNPredictor, MaskRCNNPredictor
from maskrcnn_scratch.ops import batched_nms_padded
from tests.model.swapped import build, class_agnostic, detect, images, select_nothing, train


def soft_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, max_out: int, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Not Soft-NMS itself: halves the scores of what NMS selects."""
    indices, counts = batched_nms_padded(boxes, scores, groups, threshold, max_out, num_groups)
    return indices, counts, scores.gather(1, indices) / 2


def test_nms_may_return_scores() -> None:
    usual, halved = build(), build(box_nms=soft_nms)
    for one, other in zip(detect(halved), detect(usual), strict=True):
        assert len(one["scores"]) > 0
        assert torch.equal(one["scores"] * 2, other["scores"])
        assert torch.equal(one["boxes"], other["boxes"])
    with torch.no_grad():
        proposals = build(rpn_nms=soft_nms).eval().run_stages(images()).proposals
        reference = build().eval().run_stages(images()).proposals
    assert torch.equal(proposals.scores * 2, reference.scores)
    assert bool((proposals.scores[~proposals.valid] == 0).all())


@pytest.mark.parametrize("argument", ["rpn_nms", "box_nms"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_nms_may_select_nothing(argument: str, agnostic: bool) -> None:
    model = (
        class_agnostic(**{argument: select_nothing})
        if agnostic
        else build(**{argument: select_nothing})
    )
    for result in detect(model):
        assert result["boxes"].shape == (0, 4)
        assert result["masks"].shape[:2] == (0, 1)
    train(model)


class AllMasks(MaskRCNNPredictor):
    """Has no argument ``labels``."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input)


@pytest.mark.parametrize("predictor", [MaskRCNNPredictor, AllMasks])
def test_class_agnostic_predictors_equal_those_with_equal_classes(
    predictor: type[MaskRCNNPredictor],
) -> None:
    agnostic = class_agnostic(predictor)
    repeated = build(
        None, box_predictor=FastRCNNPredictor(1024, 3), mask_predictor=predictor(256, 256, 3)
    )
    weights = dict(agnostic.state_dict())
    for name in ("box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits"):
        for kind in ("weight", "bias"):
            key = f"roi_heads.{name}.{kind}"
            weights[key] = torch.cat([weights[key]] * 3)
    repeated.load_state_dict(weights)
    for one, other in zip(detect(agnostic), detect(repeated), strict=True):
        assert len(one["boxes"]) > 0 and one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-4)
    losses = train(repeated)
    for name, loss in train(agnostic).items():
        torch.testing.assert_close(loss, losses[name], rtol=1e-4, atol=1e-5)
    weight = "roi_heads.box_predictor.bbox_pred.weight"
    gradients = repeated.get_parameter(weight).grad, agnostic.get_parameter(weight).grad
    assert gradients[0] is not None and gradients[1] is not None
    torch.testing.assert_close(
        gradients[0].unflatten(0, (3, 4)).sum(0), gradients[1], rtol=1e-3, atol=1e-5
    )
