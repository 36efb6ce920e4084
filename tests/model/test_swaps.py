"""Parts and whole stages are constructor arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import FasterRCNN, FastRCNNPredictor
from maskrcnn_scratch.builders.small import small_fasterrcnn, small_maskrcnn
from maskrcnn_scratch.inference.optimize import optimize
from maskrcnn_scratch.ops import batched_nms_padded
from maskrcnn_scratch.structures import Proposals
from tests.model.swapped import Backbone, build, detect, images, train

RPN_PARTS = {
    "rpn_box_coder": "box_coder",
    "rpn_nms": "nms",
    "rpn_proposal_matcher": "proposal_matcher",
    "rpn_fg_bg_sampler": "fg_bg_sampler",
    "rpn_loss_objectness": "loss_objectness",
    "rpn_loss_box_reg": "loss_rpn_box_reg",
}
BOX_PARTS = {
    "box_coder": "box_coder",
    "box_nms": "nms",
    "box_proposal_matcher": "proposal_matcher",
    "box_fg_bg_sampler": "fg_bg_sampler",
    "box_loss_classifier": "loss_classifier",
    "box_loss_box_reg": "loss_box_reg",
    "mask_loss": "loss_mask",
}


@pytest.mark.parametrize("argument", [*RPN_PARTS, *BOX_PARTS])
def test_every_part_is_an_argument(argument: str) -> None:
    usual = build()
    stage, attribute = (
        ("rpn", RPN_PARTS[argument])
        if argument in RPN_PARTS
        else ("roi_heads", BOX_PARTS[argument])
    )
    part = getattr(getattr(usual, stage), attribute)

    class Wrapped:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return part(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(part, name)

    wrapped = Wrapped()
    model = build(**{argument: wrapped})
    assert getattr(getattr(model, stage), attribute) is wrapped
    for name, loss in train(build()).items():
        assert torch.equal(loss, train(model)[name])


def test_whole_stages_are_arguments() -> None:
    usual = build()
    model = build(None, rpn=usual.rpn, roi_heads=usual.roi_heads)
    assert model.rpn is usual.rpn and model.roi_heads is usual.roi_heads
    boxes_only = FasterRCNN(Backbone(), 3, rpn=usual.rpn, transform=usual.transform)
    assert boxes_only.rpn is usual.rpn and boxes_only.transform is usual.transform


@pytest.mark.parametrize(
    "stage, argument, value",
    [
        ("rpn", "rpn_nms_thresh", 0.5),
        ("rpn", "rpn_nms", batched_nms_padded),
        ("roi_heads", "num_classes", 4),
        ("roi_heads", "box_nms", batched_nms_padded),
        ("roi_heads", "mask_loss", F.mse_loss),
        ("transform", "min_size", 64),
        ("transform", "size_divisible", 16),
    ],
)
def test_a_stage_and_parts_of_it_are_refused(stage: str, argument: str, value: Any) -> None:
    whole = getattr(build(), stage)
    options: dict[str, Any] = {} if stage == "roi_heads" else {"num_classes": 3}
    with pytest.raises(ValueError, match=f"{stage} is passed in whole: {argument} must be set"):
        FasterRCNN(Backbone(), **{**options, stage: whole, argument: value})


class OwnStage:
    """An RPN that is no ``RegionProposalNetwork`` and has none of its parts."""

    def __init__(self, rpn: Any) -> None:
        self.predict, self.propose, self.losses = rpn.predict, rpn.propose, rpn.losses


def test_a_stage_needs_its_protocol_only() -> None:
    usual = build()
    model = build(rpn=OwnStage(usual.rpn))
    model.backbone, model.roi_heads = usual.backbone, usual.roi_heads
    assert not isinstance(model.rpn, nn.Module)
    for one, other in zip(detect(model), detect(usual), strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
    assert train(model).keys() == train(usual).keys()


class Shift(nn.Module):
    """Moves each proposal to the right by as many pixels as it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Parameter(torch.tensor(3.0))

    def forward(self, features: Any, proposals: Proposals, padded_size: Any) -> Proposals:
        moved = proposals.boxes + self.pixels * torch.tensor([1.0, 0, 1, 0])
        boxes = moved.clamp(max=padded_size[1]).where(proposals.valid[..., None], 0)
        return Proposals(boxes, proposals.scores, proposals.counts, proposals.anchor_indices)

    def losses(
        self, features: Any, proposals: Proposals, padded_size: Any, targets: Any, generator: Any
    ) -> tuple[dict[str, Tensor], Proposals]:
        with torch.no_grad():
            moved = self(features, proposals, padded_size)
        return {"loss_shift": self.pixels.square()}, moved


def test_refine_moves_the_proposals() -> None:
    usual, model = build(), build(refine=Shift())
    assert train(model).keys() - train(usual).keys() == {"loss_shift"}
    assert model.roi_heads.refine.pixels.grad == 6  # type: ignore[union-attr]
    with torch.no_grad():
        stages = model.eval().run_stages(images())
        moved = model.roi_heads.refine(stages.features, stages.proposals, (96, 96))  # type: ignore[misc]
        features = usual.eval().run_stages(images()).features
        logits, _, _ = usual.roi_heads.detect_boxes(features, moved, stages.images)
        assert torch.equal(stages.class_logits, logits)
        model.roi_heads.refine.pixels.zero_()  # type: ignore[union-attr, operator]
    for one, other in zip(detect(model), detect(usual), strict=True):
        assert len(one["boxes"]) > 0 and torch.equal(one["boxes"], other["boxes"])
    optimize(model)


def test_parts_replace_those_of_the_small_models() -> None:
    predictor = FastRCNNPredictor(256, 3)
    for small in (small_maskrcnn, small_fasterrcnn):
        model = small(3, box_predictor=predictor, norm_layer=lambda n: nn.GroupNorm(8, n))
        assert model.roi_heads.box_predictor is predictor
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
