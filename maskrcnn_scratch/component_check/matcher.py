"""Checks of a matcher. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.call_part import asks_for, with_context
from maskrcnn_scratch.component_check.common import part_checks, require_tensor
from maskrcnn_scratch.component_check.host import model_around
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import Subject, random_boxes
from maskrcnn_scratch.targets.matcher import Matcher

LOWEST = min(Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS)
BOXES = 200  # A
OBJECTS = 5  # G


def plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.Matcher``."""
    side = subject.setting.side
    gt_boxes = random_boxes(OBJECTS, side, seed=1)
    # Each object itself, the same box moved, boxes anywhere, one outside of everything.
    boxes = torch.cat(
        (
            gt_boxes,
            gt_boxes + side / 32,
            random_boxes(BOXES, side),
            torch.tensor([[10.0 * side, 10 * side, 11 * side, 11 * side]]),
        )
    )

    def model_with(part: Any) -> Any:
        model = model_around(subject.setting)
        model.rpn.proposal_matcher = part
        if not asks_for(part, "level_sizes"):  # proposals have no levels
            model.roi_heads.proposal_matcher = part
        return model

    return Plan(
        checks=_checks(subject, gt_boxes, boxes),
        model_with=model_with,
        default=lambda: Matcher(0.5, 0.5),
        call=lambda part: match(part, gt_boxes, boxes),
        training_only=True,
    )


def _checks(subject: Subject, gt_boxes: Tensor, boxes: Tensor) -> Iterator[CheckResult]:
    part, fresh = subject.part, (gt_boxes.clone(), boxes.clone())
    yield outcome("types and shapes", lambda: types_and_shapes(part, gt_boxes, boxes))
    yield outcome("value range", lambda: value_range(part, gt_boxes, boxes))
    yield outcome("zero objects", lambda: no_objects(part, gt_boxes, boxes))
    yield outcome("no boxes", lambda: no_boxes(part, gt_boxes, boxes))
    yield outcome("matches", lambda: matches(part, gt_boxes, boxes))
    yield from part_checks(subject, match, *fresh)


def match(part: Any, gt_boxes: Tensor, boxes: Tensor) -> Any:
    """``part(gt_boxes, boxes)``; the boxes are those of two levels, if the part asks for that."""
    coarse = len(boxes) // 4
    part = with_context(part, level_sizes=[len(boxes) - coarse, coarse])
    return part(gt_boxes, boxes)


def types_and_shapes(part: Any, gt_boxes: Tensor, boxes: Tensor) -> str:
    """Many objects and one."""
    for objects in (gt_boxes, gt_boxes[:1]):
        require_tensor(match(part, objects, boxes), "the match", (len(boxes),), torch.int64)
    return f"int64 [{len(boxes)}]"


def value_range(part: Any, gt_boxes: Tensor, boxes: Tensor) -> str:
    for objects in (gt_boxes, gt_boxes[:1]):
        matched = match(part, objects, boxes)
        require(
            bool((matched >= LOWEST).all() and (matched < len(objects)).all()),
            f"matches with {len(objects)} objects are {matched.min()} to {matched.max()}, "
            f"expected {LOWEST} to {len(objects) - 1}",
        )
    matched = match(part, gt_boxes, boxes)
    positive, between = (matched >= 0).sum(), (matched == Matcher.BETWEEN_THRESHOLDS).sum()
    return f"{positive} matched, {between} between thresholds, of {len(boxes)} boxes"


def no_objects(part: Any, gt_boxes: Tensor, boxes: Tensor) -> str:
    """Without ground truth, every box is background or ignored."""
    matched = match(part, gt_boxes[:0], boxes)
    require_tensor(matched, "the match without objects", (len(boxes),), torch.int64)
    require(
        bool(((matched < 0) & (matched >= LOWEST)).all()),
        f"matches without objects are {matched.unique().tolist()}, expected negative ones",
    )
    return f"all {matched.unique().tolist()}"


def no_boxes(part: Any, gt_boxes: Tensor, boxes: Tensor) -> str:
    require_tensor(match(part, gt_boxes, boxes[:0]), "the match of no boxes", (0,), torch.int64)
    return ""


def matches(part: Any, gt_boxes: Tensor, boxes: Tensor) -> str:
    """A box equal to an object is matched to it; one that overlaps nothing is not matched."""
    matched = match(part, gt_boxes, boxes)
    own = matched[: len(gt_boxes)].tolist()
    require(
        own == list(range(len(gt_boxes))),
        f"boxes equal to objects {list(range(len(gt_boxes)))} are matched to {own}",
    )
    require(int(matched[-1]) < 0, f"a box outside of the image is matched to {int(matched[-1])}")
    return "boxes equal to an object are matched to it"
