"""What a part may ask for: keyword arguments that only those who name them are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import BoxCoder, Matcher
from maskrcnn_scratch.call_part import asks_for, with_context
from maskrcnn_scratch.component_check import loss as check_of_loss
from maskrcnn_scratch.inspect.training_sample import training_sample
from tests.model.swapped import Hardest, build, class_agnostic, images, targets, train


def test_context_is_given_to_those_who_ask() -> None:
    class Asking(nn.Module):
        def forward(self, x: int, level_sizes: int = 0) -> int:
            return x + level_sizes

    assert asks_for(Asking(), "level_sizes") and not asks_for(len, "level_sizes")
    assert not asks_for(lambda *args, **kwargs: 0, "level_sizes")
    assert with_context(with_context(Asking(), other=1), level_sizes=3)(2) == 5
    assert with_context(len, level_sizes=3) is len


def test_matchers_may_ask_for_level_sizes() -> None:
    seen = []

    class PerLevel(Matcher):
        def __call__(self, gt_boxes: Tensor, boxes: Tensor, *, level_sizes: list[int]) -> Tensor:
            seen.append((list(level_sizes), len(boxes)))
            return super().__call__(gt_boxes, boxes)

    train(build(rpn_proposal_matcher=PerLevel(0.7, 0.3, True)))
    assert all(len(sizes) == 3 and sum(sizes) == num_boxes for sizes, num_boxes in seen)


@pytest.mark.parametrize("as_module", [False, True])
def test_samplers_may_ask_for_losses_and_scores(as_module: bool) -> None:
    rpn, box = Hardest(64, 0.5), Hardest(64, 0.5)

    class Module(nn.Module):
        def forward(self, labels: Any, generator: Any = None, *, losses: Any, scores: Any) -> Any:
            return box(labels, generator, losses=losses, scores=scores)

    train(build(rpn_fg_bg_sampler=rpn, box_fg_bg_sampler=Module() if as_module else box))
    for labels, losses, scores in (rpn.seen, box.seen):
        assert len(labels) == len(losses) == len(scores) == 2
        for of_image, loss, score in zip(labels, losses, scores, strict=True):
            assert loss.shape == of_image.shape and not loss.requires_grad
            assert bool((loss[of_image < 0] == 0).all()) and len(score) == len(loss)
    labels, losses, scores = box.seen
    of_label = scores[0][torch.arange(len(labels[0])), labels[0].clamp(min=0)]
    expected = (-of_label.log()).masked_fill(labels[0] < 0, 0)
    torch.testing.assert_close(losses[0], expected)
    labels, losses, scores = rpn.seen
    of_label = torch.where(labels[0] > 0, scores[0], 1 - scores[0])
    torch.testing.assert_close(losses[0], (-of_label.log()).masked_fill(labels[0] < 0, 0))


def test_box_losses_may_ask_for_boxes_and_their_coder() -> None:
    seen: dict[str, tuple[Tensor, Tensor, Any]] = {}

    def rpn_loss(
        deltas: Tensor, labels: Tensor, targets: Tensor, anchors: Tensor, box_coder: BoxCoder
    ) -> Tensor:
        seen["rpn"] = (labels, box_coder.decode(targets, anchors), box_coder)
        return (box_coder.decode(deltas, anchors) - box_coder.decode(targets, anchors)).abs().mean()

    def box_loss(
        deltas: Tensor, labels: Tensor, targets: Tensor, proposals: Tensor, box_coder: BoxCoder
    ) -> Tensor:
        seen["box"] = (labels, box_coder.decode(targets, proposals), box_coder)
        return deltas.abs().mean()

    def mask_loss(logits: Tensor, labels: Tensor, masks: Tensor, proposals: Tensor) -> Tensor:
        assert len(proposals) == len(logits) and proposals.shape[1] == 4
        return logits.abs().sum()

    model = build(rpn_loss_box_reg=rpn_loss, box_loss_box_reg=box_loss, mask_loss=mask_loss)
    train(model)
    assert seen["rpn"][2] is model.rpn.box_coder and seen["box"][2] is model.roi_heads.box_coder
    resized = model.eval().transform(images(), targets())[1]
    assert resized is not None
    for labels, decoded, _ in seen.values():  # the decoded targets are the objects
        objects = decoded[labels > 0]
        assert len(objects) > 0
        distance = (objects[:, None] - resized[0]["boxes"]).abs().amax(2).amin(1)
        assert float(distance.max()) < 1e-2


def test_inspect_gives_parts_what_they_ask_for() -> None:
    class PerLevel(Matcher):
        def __call__(self, gt_boxes: Tensor, boxes: Tensor, *, level_sizes: list[int]) -> Tensor:
            assert sum(level_sizes) == len(boxes)
            return super().__call__(gt_boxes, boxes)

    def corners(deltas: Tensor, targets: Tensor, boxes: Tensor, box_coder: BoxCoder) -> Tensor:
        difference = box_coder.decode(deltas, boxes) - box_coder.decode(targets, boxes)
        return difference.abs().mean(1)

    def rpn_loss(
        deltas: Tensor, labels: Tensor, targets: Tensor, anchors: Tensor, box_coder: BoxCoder
    ) -> Tensor:
        return (corners(deltas, targets, anchors, box_coder) * (labels > 0)).mean()

    def box_loss(
        deltas: Tensor, labels: Tensor, targets: Tensor, proposals: Tensor, box_coder: BoxCoder
    ) -> Tensor:
        return (corners(deltas, targets, proposals, box_coder) * (labels > 0)).mean()

    model = class_agnostic(
        rpn_proposal_matcher=PerLevel(0.7, 0.3, True),
        rpn_fg_bg_sampler=Hardest(64, 0.5),
        box_fg_bg_sampler=Hardest(64, 0.5),
        rpn_loss_box_reg=rpn_loss,
        box_loss_box_reg=box_loss,
    ).eval()
    with torch.no_grad():
        stages = model.run_stages(images()[:1])
    sample = training_sample(model, images()[0], targets()[0], stages)
    assert sample.losses["loss_box_reg"] > 0 and sample.masks is not None
    assert all(share is not None for share in sample.shares.values())


def test_the_check_of_a_loss_gives_it_what_it_asks_for() -> None:
    def loss(deltas: Tensor, labels: Tensor, anchors: Tensor, box_coder: BoxCoder) -> Tensor:
        return (box_coder.decode(deltas, anchors) - anchors).abs().sum()

    assert float(check_of_loss.call(loss, torch.zeros(5, 4), torch.ones(5))) < 1e-2
