"""What the page shows of the ground truth: each object's fate, and the anchors matched to it.

Shapes: see ``structures``.
"""

from __future__ import annotations

from typing import Any

import torch

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.missed import Fate, ObjectFate, explain_objects
from maskrcnn_scratch.inspect.packed import pack
from maskrcnn_scratch.inspect.selection import Selection, refined_boxes
from maskrcnn_scratch.inspect.targets import resized_targets, rpn_targets
from maskrcnn_scratch.structures import IGNORE_LABEL, StageOutputs, Target

NO_OBJECT = -1  # of an anchor that is ignored

# The stage of the report in which each fate is shown.
STEP_OF_FATE = {
    Fate.NO_ANCHOR: "anchors",
    Fate.NOT_REACHED: "objectness",
    Fate.NOT_IN_TOP_K: "objectness",
    Fate.FILTERED: "proposals",
    Fate.RPN_NMS: "proposals",
    Fate.BEYOND_PROPOSALS: "proposals",
    Fate.REFINED_AWAY: "box_head",
    Fate.BACKGROUND: "box_head",
    Fate.OTHER_CLASS: "box_head",
    Fate.UNDER_THRESHOLD: "class_nms",
    Fate.CLASS_NMS: "class_nms",
    Fate.BEYOND_DETECTIONS: "class_nms",
    Fate.TAKEN: "class_nms",
    Fate.POOR_MASK: "mask_head",
    Fate.FOUND: "result",
    Fate.NOT_AVAILABLE: "result",
}


def collect_objects(
    model: GeneralizedRCNN,
    stages: StageOutputs,
    target: Target | None,
    class_names: dict[int, str],
    rpn: Selection | None,
    box: Selection | None,
) -> list[dict[str, Any]] | None:
    """The objects of ``target``, which is in the pixels of the page; None without annotations."""
    if target is None:
        return None
    page_size = _page_size(target)
    resized = resized_targets(stages, [target], [page_size])[0]
    fates = explain_objects(model, stages, [target], [page_size])[0]
    return [
        {
            "box": resized["boxes"][fate.object].tolist(),
            "page_box": target["boxes"][fate.object].tolist(),
            "label": fate.label,
            "fate": fate.fate.value,
            "lost": fate.fate is not Fate.FOUND,
            "step": STEP_OF_FATE[fate.fate],
            "text": sentence(fate, class_names),
            "anchor": fate.anchor,
            "anchor_box": stages.anchors[fate.anchor].tolist(),
            "anchor_iou": fate.anchor_iou,
            "candidate": fate.candidate,
            "proposal": fate.proposal,
            "refined": _refined(model, stages, fate),
            "class_candidate": fate.class_candidate,
            "detection": fate.detection,
            "suppressor": fate.suppressor,
            "suppressor_iou": fate.suppressor_iou,
        }
        for fate in fates
    ]


def _refined(model: GeneralizedRCNN, stages: StageOutputs, fate: ObjectFate) -> list[float] | None:
    """The box that the box head predicts for the object's class from the proposal followed."""
    if fate.proposal is None:
        return None
    device = stages.box_regression.device
    proposal, label = torch.tensor([[fate.proposal], [fate.label]], device=device)
    refined = refined_boxes(model, stages, 0, proposal, label)
    return None if refined is None else refined[0].tolist()


def _page_size(target: Target) -> tuple[int, int]:
    return int(target["masks"].shape[-2]), int(target["masks"].shape[-1])


def sentence(fate: ObjectFate, class_names: dict[int, str]) -> str:
    """The fate with its numbers, in a sentence or two."""
    text = fate.fate.value[0].upper() + fate.fate.value[1:] + "."
    kind = fate.fate
    if kind in (Fate.NO_ANCHOR, Fate.NOT_REACHED):
        text += f" The best anchor has IoU {fate.anchor_iou:.2f} with it."
    elif kind is Fate.NOT_IN_TOP_K:
        text += f" Each level keeps the {fate.limit} anchors of the highest objectness."
    elif kind in (Fate.RPN_NMS, Fate.CLASS_NMS):
        what = "candidate" if kind is Fate.RPN_NMS else "box of this class"
        text += (
            f" Its best {what} ({_number(fate, kind)}) was suppressed by {fate.suppressor}, with "
            f"IoU {fate.suppressor_iou or 0:.2f}."
        )
    elif kind in (Fate.BEYOND_PROPOSALS, Fate.BEYOND_DETECTIONS):
        text += f" Its best box has rank {(fate.rank or 0) + 1}; {fate.limit} are kept."
    elif kind in (Fate.BACKGROUND, Fate.OTHER_CLASS, Fate.UNDER_THRESHOLD):
        text += " " + _scores(fate, class_names)
    elif kind is Fate.TAKEN:
        text += f" Detection {fate.detection} lies on both and counts for one object."
    elif kind is Fate.POOR_MASK:
        text += f" IoU of the box {fate.box_iou or 0:.2f}, of the mask {fate.mask_iou or 0:.2f}."
    elif kind is Fate.FOUND:
        text = f"Found: detection {fate.detection}, IoU of the box {fate.box_iou or 0:.2f}"
        text += "." if fate.mask_iou is None else f", of the mask {fate.mask_iou:.2f}."
    return text


def _number(fate: ObjectFate, kind: Fate) -> int | None:
    return fate.candidate if kind is Fate.RPN_NMS else fate.class_candidate


def _scores(fate: ObjectFate, class_names: dict[int, str]) -> str:
    """A sentence with the class scores of the object's proposal, ``fate.proposal``."""
    assert fate.scores is not None
    winner = int(fate.scores.argmax())
    names = {0: "background", **class_names}
    own = f"{names.get(fate.label, fate.label)} {float(fate.scores[fate.label]):.2f}"
    text = f"Proposal {fate.proposal} scores {own}"
    if winner != fate.label:
        text += f", {names.get(winner, winner)} {float(fate.scores[winner]):.2f}"
    return text + "."


def collect_anchor_targets(
    model: GeneralizedRCNN, stages: StageOutputs, target: Target | None
) -> dict[str, Any] | None:
    """Positive and ignored anchors, and the object of each; all others are negative."""
    if target is None:
        return None
    found = rpn_targets(model, stages, [target], [_page_size(target)])[0]
    other = (found.labels != 0).nonzero().squeeze(1)
    ignored = found.labels[other] == IGNORE_LABEL
    return {
        "anchors": pack(other),
        "objects": pack(found.best_object[other].where(~ignored, NO_OBJECT)),
        "best": pack(found.best_object[other]),
        "iou": pack(found.best_iou[other]),
        "positive": int((found.labels == 1).sum()),
        "ignored": int(ignored.sum()),
        "negative": int((found.labels == 0).sum()),
        "sampled": pack(torch.cat((found.positives, found.negatives))),
        "thresholds": [
            getattr(model.rpn.proposal_matcher, name, None)
            for name in ("low_threshold", "high_threshold")
        ],
    }
