"""Where each object of the ground truth was found or lost.

A box leads to an object where it reaches ``IOU_FOUND`` with it. For each object the boxes that lead
to it are followed through the stages. The stage after which none is left is where it was lost.

Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.selection import (
    Selection,
    box_selection,
    refined_boxes,
    rpn_selection,
)
from maskrcnn_scratch.inspect.suppression import NO_RANK, NOBODY, Suppression, suppressed_by
from maskrcnn_scratch.inspect.targets import resized_targets
from maskrcnn_scratch.ops import max_iou
from maskrcnn_scratch.ops.boxes import box_iou, clip_boxes_to_image
from maskrcnn_scratch.structures import StageOutputs, Target

IOU_FOUND = 0.5  # of a detection with the object that it counts for, as in AP50
MASK_THRESHOLD = 0.5


class Fate(str, Enum):
    """What became of an object, in the order of the stages."""

    NO_ANCHOR = "no anchor overlaps it enough"
    NOT_REACHED = "no anchor's deltas lead to it"
    NOT_IN_TOP_K = "not in the top-k"
    FILTERED = "filtered out before the RPN's NMS"
    RPN_NMS = "suppressed in the RPN's NMS"
    BEYOND_PROPOSALS = "beyond the cap of proposals"
    REFINED_AWAY = "the box refinement leads away from it"
    BACKGROUND = "classified as background"
    OTHER_CLASS = "classified as another class"
    UNDER_THRESHOLD = "under the score threshold"
    CLASS_NMS = "suppressed in class-wise NMS"
    BEYOND_DETECTIONS = "beyond the cap of detections"
    TAKEN = "its detection counts for another object"
    POOR_MASK = "found with a poor mask"
    FOUND = "found"
    NOT_AVAILABLE = "not available for this component"


@dataclass(frozen=True, eq=False)
class ObjectFate:
    """Where one object was found or lost, and the evidence.

    None stands for evidence that this fate does not have.

    Attributes:
        object, label: index in the target, and its label.
        fate: see ``Fate``.
        anchor, anchor_iou: the anchor that overlaps the object most, and their IoU.
        candidate: the RPN's candidate that was followed, an index into ``rpn_selection``.
        proposal: the proposal that was followed.
        class_candidate: the box head's candidate that was followed (one class of one proposal), an
            index into ``box_selection``.
        detection: the detection that counts for it, or that was taken.
        suppressor, suppressor_iou: for both kinds of NMS the candidate that suppressed the one
            that was followed, and their IoU.
        rank, limit: rank in the top-k or among the survivors of NMS, and how many are kept.
        scores: class probabilities ``[C]`` of ``proposal``.
        box_iou, mask_iou: IoU of the object with the detection.
    """

    object: int
    label: int
    fate: Fate
    anchor: int
    anchor_iou: float
    candidate: int | None = None
    proposal: int | None = None
    class_candidate: int | None = None
    detection: int | None = None
    suppressor: int | None = None
    suppressor_iou: float | None = None
    rank: int | None = None
    limit: int | None = None
    scores: Tensor | None = None
    box_iou: float | None = None
    mask_iou: float | None = None


def explain_missed(
    model: GeneralizedRCNN,
    stages: StageOutputs,
    targets: Sequence[Target],
    original_image_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[list[ObjectFate]]:
    """For each image the objects that were not found, or found with a poor mask, and why."""
    fates = explain_objects(model, stages, targets, original_image_sizes)
    return [[fate for fate in of_image if fate.fate is not Fate.FOUND] for of_image in fates]


def explain_objects(
    model: GeneralizedRCNN,
    stages: StageOutputs,
    targets: Sequence[Target],
    original_image_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[list[ObjectFate]]:
    """What became of every object, for each image; an image without objects gives an empty list.

    Args:
        targets: ground truth in the pixels of ``stages.results``.
        original_image_sizes: see ``resized_targets``.

    Raises:
        ValueError: targets that do not fit the images.
    """
    resized = resized_targets(stages, targets, original_image_sizes)
    return [
        _Image(model, stages, n, target["boxes"], target["labels"], targets[n].get("masks")).fates()
        for n, target in enumerate(resized)
    ]


class _Image:
    """The stages of one image, and how they overlap its ``G`` objects."""

    def __init__(
        self,
        model: GeneralizedRCNN,
        stages: StageOutputs,
        image: int,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        gt_masks: Tensor | None,
    ) -> None:
        self.model, self.stages, self.image = model, stages, image
        self.gt_boxes, self.gt_masks = gt_boxes.to(stages.anchors), gt_masks
        self.gt_labels = gt_labels.tolist()
        self.size = stages.images.sizes[image : image + 1]
        self.rpn = rpn_selection(model, stages, image)
        self.box = box_selection(model, stages, image)
        self.rpn_nms = None if self.rpn is None else suppressed_by(self.rpn)
        self.box_nms = None if self.box is None else suppressed_by(self.box)
        num_proposals = int(stages.proposals.counts[image])
        self.proposals = stages.proposals.boxes[image, :num_proposals]
        self.scores = stages.class_logits[image, :num_proposals].softmax(1)  # [P, C]

    def fates(self) -> list[ObjectFate]:
        if len(self.gt_labels) == 0:
            return []
        best_iou, best_anchor, _ = max_iou(self.stages.anchors, self.gt_boxes)  # [G] each
        matched = self.match_detections()
        fates = []
        for index, label in enumerate(self.gt_labels):
            known = {
                "object": index,
                "label": label,
                "anchor": int(best_anchor[index]),
                "anchor_iou": float(best_iou[index]),
            }
            detection, iou = matched[index]
            if detection is not None:
                evidence = self.found(index, detection, iou)
            else:
                evidence = self.lost(index, label, float(best_iou[index]))
            fates.append(ObjectFate(**{**known, **evidence}))
        return fates

    def match_detections(self) -> list[tuple[int | None, float]]:
        """For each object the detection that counts for it, as COCO matches them, and their IoU.

        Detections are taken best first; each counts for the free object of its label with the
        highest IoU, which must reach ``IOU_FOUND``.
        """
        count = int(self.stages.detections.counts[self.image])
        iou = box_iou(self.stages.detections.boxes[self.image, :count], self.gt_boxes).tolist()
        labels = self.stages.detections.labels[self.image, :count].tolist()
        matched: list[tuple[int | None, float]] = [(None, 0.0)] * len(self.gt_labels)
        for detection in range(count):
            free = [
                (iou[detection][g], -g)
                for g, label in enumerate(self.gt_labels)
                if label == labels[detection] and matched[g][0] is None
            ]
            best, negative = max(free, default=(0.0, 0))
            if best >= IOU_FOUND:
                matched[-negative] = (detection, best)
        return matched

    def found(self, index: int, detection: int, iou: float) -> dict[str, object]:
        mask_iou = self.mask_iou(index, detection)
        poor = mask_iou is not None and mask_iou < IOU_FOUND
        proposal = int(self.stages.detections.proposal_indices[self.image, detection])
        return {
            "fate": Fate.POOR_MASK if poor else Fate.FOUND,
            "proposal": proposal,
            "detection": detection,
            "scores": self.scores[proposal],
            "box_iou": iou,
            "mask_iou": mask_iou,
        }

    def mask_iou(self, index: int, detection: int) -> float | None:
        """IoU of the object's mask and the detection's; None where one of them has no mask."""
        results = self.stages.results
        if self.gt_masks is None or not results or "masks" not in results[self.image]:
            return None
        found = results[self.image]["masks"][detection, 0] >= MASK_THRESHOLD  # [H, W]
        truth = self.gt_masks[index].to(found.device) > 0
        if found.shape != truth.shape:
            raise ValueError(
                f"masks of the target are {list(truth.shape)}, those of the results "
                f"{list(found.shape)}"
            )
        return float((found & truth).sum() / (found | truth).sum().clamp(min=1))

    def lost(self, index: int, label: int, anchor_iou: float) -> dict[str, object]:
        """The first stage after which no box leads to the object."""
        gt_box = self.gt_boxes[index : index + 1]
        if self.rpn is None or self.box is None:
            return {"fate": Fate.NOT_AVAILABLE}
        proposals = torch.arange(len(self.proposals), device=gt_box.device)
        labels = torch.full_like(proposals, label)
        refined = refined_boxes(self.model, self.stages, self.image, proposals, labels)
        assert refined is not None  # box_selection has the same boxes
        leads = box_iou(gt_box, refined)[0] >= IOU_FOUND  # [P]
        if bool(leads.any()):
            return self.lost_in_box_head(label, leads)
        overlap = box_iou(gt_box, self.proposals)[0]  # [P]
        if bool((overlap >= IOU_FOUND).any()):
            proposal = int(overlap.argmax())
            scores = self.scores[proposal]
            return {"fate": Fate.REFINED_AWAY, "proposal": proposal, "scores": scores}
        return self.lost_in_rpn(gt_box, anchor_iou)

    @cached_property
    def decoded_anchors(self) -> Tensor:
        """The boxes at the deltas of every anchor, ``[A, 4]``."""
        deltas = self.stages.pred_bbox_deltas[self.image]
        boxes = self.model.rpn.box_coder.decode(deltas, self.stages.anchors)
        return clip_boxes_to_image(boxes[None], self.size)[0]

    def lost_in_box_head(self, label: int, leads: Tensor) -> dict[str, object]:
        assert self.box is not None
        own = self.scores[:, label].where(leads, -1)
        proposal = int(own.argmax())
        evidence = {"proposal": proposal, "scores": self.scores[proposal]}
        rows = leads[self.box.parents] & (self.box.groups == label)
        rows &= self.box.scores > -torch.inf
        if bool(rows.any()):
            after = _after_nms(self.box, self.box_nms, rows)
            candidate = after.pop("candidate")
            assert isinstance(candidate, int)
            proposal = int(self.box.parents[candidate])
            fate = {"nms": Fate.CLASS_NMS, "cap": Fate.BEYOND_DETECTIONS}.get(
                str(after.pop("lost")), Fate.NOT_AVAILABLE
            )
            kept = (self.box.kept == candidate).nonzero()
            if len(kept):  # it is a detection, but another object was its best match
                fate, after["detection"] = Fate.TAKEN, int(kept[0])
            evidence = {"proposal": proposal, "scores": self.scores[proposal]}
            return {"fate": fate, "class_candidate": candidate, **evidence, **after}
        winner = int(self.scores[proposal].argmax())
        if winner == label:
            return {"fate": Fate.UNDER_THRESHOLD, **evidence}
        return {"fate": Fate.OTHER_CLASS if winner else Fate.BACKGROUND, **evidence}

    def lost_in_rpn(self, gt_box: Tensor, anchor_iou: float) -> dict[str, object]:
        assert self.rpn is not None
        rows = box_iou(gt_box, self.rpn.boxes)[0] >= IOU_FOUND  # [K]
        if bool(rows.any()):
            alive = rows & (self.rpn.scores > -torch.inf)
            if not bool(alive.any()):
                return {"fate": Fate.FILTERED, "candidate": int(rows.nonzero()[0])}
            after = _after_nms(self.rpn, self.rpn_nms, alive)
            fate = {"nms": Fate.RPN_NMS, "cap": Fate.BEYOND_PROPOSALS}.get(
                str(after.pop("lost")), Fate.NOT_AVAILABLE
            )
            return {"fate": fate, **after}
        rpn = self.model.rpn
        leads = box_iou(gt_box, self.decoded_anchors)[0] >= IOU_FOUND  # [A]
        if bool(leads.any()):
            logits = self.stages.objectness[self.image]
            best = int(logits.where(leads, -torch.inf).argmax())
            limit = rpn.pre_nms_top_n["testing"]
            return {"fate": Fate.NOT_IN_TOP_K, "anchor": best, "limit": limit}
        low = getattr(rpn.proposal_matcher, "low_threshold", None)
        if low is None or anchor_iou >= low:
            return {"fate": Fate.NOT_REACHED}
        return {"fate": Fate.NO_ANCHOR}


def _after_nms(
    selection: Selection, suppression: Suppression | None, rows: Tensor
) -> dict[str, object]:
    """What NMS did with the best of ``rows [K]``: "lost" is nms, cap, kept or unknown."""
    if suppression is None:
        best = int(selection.scores.where(rows, -torch.inf).argmax())
        return {"candidate": best, "lost": "unknown"}
    survives = rows & (suppression.rank != NO_RANK)
    if bool(survives.any()):
        # The best of them that survived: it was cut by the cap, or kept.
        rank = suppression.rank.where(survives, torch.iinfo(torch.int64).max)
        best = int(rank.argmin())
        lost = "cap" if int(rank[best]) >= selection.max_out else "kept"
        limit = selection.max_out
        return {"candidate": best, "lost": lost, "rank": int(rank[best]), "limit": limit}
    best = int(selection.scores.where(rows, -torch.inf).argmax())
    suppressor = int(suppression.suppressor[best])
    if suppressor == NOBODY:
        return {"candidate": best, "lost": "unknown"}
    return {
        "candidate": best,
        "lost": "nms",
        "suppressor": suppressor,
        "suppressor_iou": float(suppression.iou[best]),
    }
