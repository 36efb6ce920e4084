"""The candidates of both NMS steps, computed again from ``StageOutputs``.

Nothing is recorded while the model runs. ``select_proposals`` and ``select_detections`` run again
on the stored predictions, with an NMS that keeps everything, which gives the candidates. Then the
model's own NMS runs on them. Its result must equal the stored proposals or detections. If it does
not, the model has a custom component for this step, and the answer is None ("not available for
this component").

Shapes: see ``structures``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_scratch.call_part import run_nms
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.levels import anchor_levels
from maskrcnn_scratch.interfaces import NMS
from maskrcnn_scratch.ops.boxes import clip_boxes_to_image
from maskrcnn_scratch.roi_heads.detections import select_detections
from maskrcnn_scratch.rpn.proposals import select_proposals
from maskrcnn_scratch.structures import Proposals, StageOutputs


@dataclass(frozen=True, eq=False)
class Selection:
    """What entered the NMS of one image, and what it kept.

    Attributes:
        boxes: ``[K, 4]`` in the pixels of the resized image, clipped to it.
        scores: ``[K]``; -inf for a candidate that was filtered out before NMS.
        groups: int64 ``[K]``: NMS compares boxes of a group. Levels in the RPN, labels in the
            box head.
        parents: int64 ``[K]``: the anchor of each candidate in the RPN, the proposal in the box
            head.
        kept: int64: the candidates that NMS kept, best first. The RPN's are the proposals, the box
            head's are the detections.
        nms, iou_threshold, max_out, num_groups: the NMS, and its arguments.
    """

    boxes: Tensor
    scores: Tensor
    groups: Tensor
    parents: Tensor
    kept: Tensor
    nms: NMS
    iou_threshold: float
    max_out: int
    num_groups: int


def rpn_selection(model: GeneralizedRCNN, stages: StageOutputs, image: int) -> Selection | None:
    """The RPN's candidates after top-k, and the proposals among them (``Selection.kept``).

    Returns:
        None if the model's RPN selects in another way than ``RegionProposalNetwork``.
    """
    levels = anchor_levels(model, stages)
    if levels is None:
        return None
    rpn, here = model.rpn, slice(image, image + 1)
    everything = _KeepEverything()
    try:
        candidates = select_proposals(
            stages.anchors,
            stages.objectness[here],
            stages.pred_bbox_deltas[here],
            stages.images.sizes[here],
            level_sizes=[level.size for level in levels],
            pre_nms_top_n=rpn.pre_nms_top_n["testing"],
            post_nms_top_n=rpn.post_nms_top_n["testing"],
            score_thresh=rpn.score_thresh,
            nms_thresh=rpn.nms_thresh,
            min_size=rpn.min_size,
            box_coder=rpn.box_coder,
            nms=everything,
        )
    except AttributeError:  # an RPN without these settings
        return None
    found = everything.select(rpn.nms, candidates.boxes, candidates.anchor_indices)
    count = int(stages.proposals.counts[image])
    same = len(found.kept) == count and torch.equal(
        found.parents[found.kept], stages.proposals.anchor_indices[image, :count]
    )
    same = same and torch.equal(found.boxes[found.kept], stages.proposals.boxes[image, :count])
    return found if same else None


def box_selection(model: GeneralizedRCNN, stages: StageOutputs, image: int) -> Selection | None:
    """The candidates of NMS per class, and the detections among them.

    A candidate is one class of one proposal, and scores above the threshold.

    Returns:
        None if the model's RoI heads select in another way than ``RoIHeads``.
    """
    heads, here = model.roi_heads, slice(image, image + 1)
    if moves_proposals(model):
        return None
    proposals = Proposals(
        stages.proposals.boxes[here],
        stages.proposals.scores[here],
        stages.proposals.counts[here],
        stages.proposals.anchor_indices[here],
    )
    everything = _KeepEverything()
    try:
        candidates = select_detections(
            stages.class_logits[here],
            stages.box_regression[here],
            proposals,
            stages.images.sizes[here],
            score_thresh=heads.score_thresh,
            nms_thresh=heads.nms_thresh,
            detections_per_img=heads.detections_per_img,
            min_size=heads.min_size,
            box_coder=heads.box_coder,
            nms=everything,
        )
    except AttributeError:  # RoI heads without these settings
        return None
    found = everything.select(heads.nms, candidates.boxes, candidates.proposal_indices)
    count = int(stages.detections.counts[image])
    same = len(found.kept) == count and torch.equal(
        found.parents[found.kept], stages.detections.proposal_indices[image, :count]
    )
    same = same and torch.equal(found.boxes[found.kept], stages.detections.boxes[image, :count])
    return found if same else None


def moves_proposals(model: GeneralizedRCNN) -> bool:
    """Whether the deltas of the box head are relative to other boxes than the proposals."""
    return getattr(model.roi_heads, "refine", None) is not None


def refined_boxes(
    model: GeneralizedRCNN, stages: StageOutputs, image: int, proposals: Tensor, labels: Tensor
) -> Tensor | None:
    """The box ``[K, 4]`` that the box head predicts from each proposal for one class.

    Args:
        proposals, labels: int64 ``[K]``: indices of proposals, and a class for each.

    Returns:
        Boxes clipped to the resized image; None if the RoI heads have no box coder, or move the
        proposals first.
    """
    coder = getattr(model.roi_heads, "box_coder", None)
    if coder is None or moves_proposals(model):
        return None
    by_class = stages.box_regression[image]  # [P, C or 1, 4]
    deltas = by_class[proposals, labels if by_class.shape[1] > 1 else 0]
    boxes: Tensor = coder.decode(deltas, stages.proposals.boxes[image, proposals])
    return clip_boxes_to_image(boxes[None], stages.images.sizes[image : image + 1])[0]


class _KeepEverything:
    """An NMS of one image that keeps all candidates in their order, and stores its arguments."""

    def __call__(
        self,
        boxes: Tensor,
        scores: Tensor,
        groups: Tensor,
        iou_threshold: float,
        max_out: int,
        num_groups: int,
    ) -> tuple[Tensor, Tensor]:
        self.scores, self.groups = scores, groups
        self.arguments = iou_threshold, max_out, num_groups
        everything = torch.arange(boxes.shape[1], device=boxes.device)[None]  # [1, K]
        return everything, everything.new_full((1,), boxes.shape[1])

    def select(self, nms: NMS, boxes: Tensor, parents: Tensor) -> Selection:
        """What ``nms`` keeps of the candidates ``boxes [1, K, 4]``."""
        indices, counts, _ = run_nms(nms, boxes, self.scores, self.groups, *self.arguments)
        threshold, max_out, num_groups = self.arguments
        return Selection(
            boxes[0],
            self.scores[0],
            self.groups[0],
            parents[0],
            indices[0, : int(counts[0])],
            nms,
            threshold,
            max_out,
            num_groups,
        )
