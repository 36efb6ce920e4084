"""Two models or settings on the same image: detections gained, lost and changed, and where.

Shapes: see ``structures``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.missed import IOU_FOUND, MASK_THRESHOLD
from maskrcnn_scratch.inspect.selection import Selection, box_selection, rpn_selection
from maskrcnn_scratch.inspect.suppression import suppressed_by
from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.structures import StageOutputs

# Two runs of the same weights differ in the last bits where other boxes share a multiplication.
RELATIVE, ABSOLUTE = 1e-3, 1e-4


@dataclass(frozen=True)
class Change:
    """One detection of A, of B, or of both.

    Attributes:
        kind: "lost" (only A has it), "gained" (only B), "changed" or "same".
        a, b: index among the detections of A and of B.
        iou: of the two boxes.
        mask_iou: of the two masks at the results' size.
        step: the first stage (an id of ``steps.STEPS``) at which the two runs differ on the way to
            this detection; None for "same".
        text: what differs there.
    """

    kind: str
    a: int | None
    b: int | None
    iou: float | None = None
    mask_iou: float | None = None
    step: str | None = None
    text: str = ""


class Side:
    """One of the two runs, image 0 of its batch."""

    def __init__(self, name: str, model: GeneralizedRCNN, stages: StageOutputs) -> None:
        self.name, self.model, self.stages = name, model, stages
        self.count = int(stages.detections.counts[0])
        self.rpn = rpn_selection(model, stages, 0)
        self.box = box_selection(model, stages, 0)


def compare(a: Side, b: Side) -> list[Change]:
    """Detections of both, matched by label and IoU, best first; see ``Change``."""
    pairs = match(a, b)
    changes = []
    for first in range(a.count):
        second = pairs.get(first)
        if second is None:
            changes.append(Change("lost", first, None, None, None, *first_difference(a, first, b)))
        else:
            changes.append(_both(a, first, b, second))
    gained = sorted(set(range(b.count)) - set(pairs.values()))
    changes += [Change("gained", None, n, None, None, *first_difference(b, n, a)) for n in gained]
    return changes


def match(a: Side, b: Side) -> dict[int, int]:
    """Detections of A with those of B: same label and an IoU of at least ``IOU_FOUND``."""
    iou = box_iou(a.stages.results[0]["boxes"], b.stages.results[0]["boxes"].to(_device(a)))
    labels_a = a.stages.detections.labels[0, : a.count]
    labels_b = b.stages.detections.labels[0, : b.count].to(labels_a.device)
    iou = iou.where(labels_a[:, None] == labels_b, 0.0)
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for first, row in enumerate(iou.tolist()):
        free = [(value, -second) for second, value in enumerate(row) if second not in taken]
        best, negative = max(free, default=(0.0, 0))
        if best >= IOU_FOUND:
            pairs[first] = -negative
            taken.add(-negative)
    return pairs


def _device(side: Side) -> torch.device:
    return side.stages.anchors.device


def _both(a: Side, first: int, b: Side, second: int) -> Change:
    boxes_a, boxes_b = a.stages.results[0]["boxes"], b.stages.results[0]["boxes"]
    iou = float(box_iou(boxes_a[first : first + 1], boxes_b[second : second + 1].to(_device(a))))
    mask_iou = _mask_iou(a, first, b, second)
    score_a = a.stages.detections.scores[0, first]
    score_b = b.stages.detections.scores[0, second].to(_device(a))
    same = _close(score_a, score_b) and iou > 1 - ABSOLUTE and (mask_iou is None or mask_iou == 1)
    if same:
        return Change("same", first, second, iou, mask_iou)
    step, text = first_difference(a, first, b, second)
    return Change("changed", first, second, iou, mask_iou, step, text)


def _mask_iou(a: Side, first: int, b: Side, second: int) -> float | None:
    results_a, results_b = a.stages.results[0], b.stages.results[0]
    if "masks" not in results_a or "masks" not in results_b:
        return None
    mask_a = results_a["masks"][first, 0] >= MASK_THRESHOLD
    mask_b = results_b["masks"][second, 0].to(mask_a.device) >= MASK_THRESHOLD
    union = int((mask_a | mask_b).sum())
    return float((mask_a & mask_b).sum()) / union if union else 1.0


def first_difference(
    a: Side, detection: int, b: Side, partner: int | None = None
) -> tuple[str, str]:
    """The first stage at which B differs on the way to a detection of A, and what differs.

    Args:
        detection: of A.
        partner: the detection of B that is matched to it; None if there is none.

    Returns:
        a stage's id, and a sentence.
    """
    sa, sb = a.stages, b.stages
    if sa.images.tensors.shape != sb.images.tensors.shape or not _close(
        sa.images.tensors[0], sb.images.tensors[0]
    ):
        return "transform", "The resized, normalised image differs."
    for name, feature in sa.features.items():
        theirs = sb.features.get(name)
        if theirs is None or theirs.shape != feature.shape or not _close(feature[0], theirs[0]):
            return "features", f"The features of level {name} differ."
    if sa.anchors.shape != sb.anchors.shape or not _close(sa.anchors, sb.anchors):
        return "anchors", "The anchors differ."
    proposal = int(sa.detections.proposal_indices[0, detection])
    anchor = int(sa.proposals.anchor_indices[0, proposal])
    if not _close(sa.objectness[0, anchor], sb.objectness[0, anchor]):
        values = sa.objectness[0, anchor].sigmoid(), sb.objectness[0, anchor].sigmoid()
        return "objectness", f"Objectness of anchor {anchor}: {_both_values(a, b, *values)}."
    if not _close(sa.pred_bbox_deltas[0, anchor], sb.pred_bbox_deltas[0, anchor]):
        return "objectness", f"The deltas of anchor {anchor} differ."
    count = int(sb.proposals.counts[0])
    same_anchor = (sb.proposals.anchor_indices[0, :count] == anchor).nonzero()
    if not len(same_anchor):
        return "proposals", _gone(b.rpn, anchor, f"Anchor {anchor}", b.name)
    other = int(same_anchor[0])
    if not _close(sa.proposals.boxes[0, proposal], sb.proposals.boxes[0, other]):
        return "proposals", f"The box of proposal {proposal} differs."
    label = int(sa.detections.labels[0, detection])
    if sa.class_logits.shape[2] != sb.class_logits.shape[2]:
        return "box_head", "The numbers of classes differ."
    scores = sa.class_logits[0, proposal].softmax(0)
    other_scores = sb.class_logits[0, other].softmax(0)
    if not _close(scores[label], other_scores[label]):
        values = scores[label], other_scores[label]
        return "box_head", f"Score of its class: {_both_values(a, b, *values)}."
    if not _close(sa.box_regression[0, proposal, label], sb.box_regression[0, other, label]):
        return "box_head", "The box refinement differs."
    if partner is None or int(sb.detections.proposal_indices[0, partner]) != other:
        what = f"Class row {label} of proposal {other}"
        return "class_nms", _gone(b.box, other, what, b.name, label)
    return "mask_head", "The masks differ."


def _gone(
    selection: Selection | None, parent: int, what: str, name: str, label: int | None = None
) -> str:
    """Why an anchor, or a class of a proposal, is not among what ``selection`` keeps."""
    if selection is None:
        return f"{what} is not kept in {name}; why is not available for this component."
    rows = selection.parents == parent
    rows &= selection.scores > -torch.inf
    if label is not None:
        rows &= selection.groups == label
    found = rows.nonzero()
    if not len(found):
        why = "the score threshold" if label is not None else "the top-k, or too small"
        return f"{what} is no candidate of NMS in {name}: below {why}."
    candidate = int(found[0])
    suppression = suppressed_by(selection)
    if suppression is None:
        return f"{what} is dropped in {name}; why is not available for this component."
    by = int(suppression.suppressor[candidate])
    if by >= 0:
        iou = float(suppression.iou[candidate])
        return f"{what} is suppressed in {name} by candidate {by}, IoU {iou:.2f}."
    if int(suppression.rank[candidate]) >= selection.max_out:
        return f"{what} is beyond the cap of {selection.max_out} in {name}."
    return f"{what} is kept in {name}, and another box was matched."


def _both_values(a: Side, b: Side, of_a: Tensor, of_b: Tensor) -> str:
    return f"{float(of_a):.3f} in {a.name}, {float(of_b):.3f} in {b.name}"


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.float(), b.to(a.device).float(), rtol=RELATIVE, atol=ABSOLUTE)
