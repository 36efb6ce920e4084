"""Which ground-truth box each anchor or proposal belongs to (Faster R-CNN, section 3.1.2).

G ground-truth boxes, A boxes (anchors or proposals) of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.structures import slots_to_compute

# IoUs computed at a time: on a CPU as many as its cache holds, on a GPU enough to fill it.
PAIRS_AT_ONCE_CPU = 2**18
PAIRS_AT_ONCE_CUDA = 2**24


class Matcher:
    """Gives each box the ground truth it overlaps most, if the overlap suffices.

    The decisions are those of torchvision's ``Matcher`` on ``box_iou(gt_boxes, boxes)``, in bounded
    memory: the ``[G, A]`` matrix is computed in parts and never kept.

    Args:
        high_threshold: an IoU of at least this is a match.
        low_threshold: an IoU below this is background; between the two, the box counts as neither.
        allow_low_quality_matches: whether every ground truth also gets the box nearest to it,
            however far below the thresholds.
    """

    BELOW_LOW_THRESHOLD = -1
    BETWEEN_THRESHOLDS = -2

    def __init__(
        self,
        high_threshold: float,
        low_threshold: float,
        allow_low_quality_matches: bool = False,
    ) -> None:
        if low_threshold > high_threshold:
            raise ValueError(
                f"low_threshold ({low_threshold}) must not exceed high_threshold ({high_threshold})"
            )
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, gt_boxes: Tensor, boxes: Tensor) -> Tensor:
        """Matches ``boxes [A, 4]`` to ``gt_boxes [G, 4]``.

        Returns:
            int64 ``[A]``: the index of the ground truth (the first of equals), or
            ``BELOW_LOW_THRESHOLD`` or ``BETWEEN_THRESHOLDS``; all ``BELOW_LOW_THRESHOLD`` where
            there is no ground truth.
        """
        if len(gt_boxes) == 0 or len(boxes) == 0:
            return boxes.new_full((len(boxes),), self.BELOW_LOW_THRESHOLD, dtype=torch.int64)
        pairs_at_once = PAIRS_AT_ONCE_CUDA if boxes.is_cuda else PAIRS_AT_ONCE_CPU
        parts = boxes.split(max(1, pairs_at_once // len(gt_boxes)))  # each [B, 4]

        per_box, per_gt = [], []
        for part in parts:
            iou = box_iou(gt_boxes, part)  # [G, B]
            per_box.append(iou.max(dim=0))
            per_gt.append(iou.amax(dim=1))  # [G]
        best_iou = torch.cat([best.values for best in per_box])  # [A]
        nearest_gt = torch.cat([best.indices for best in per_box])  # [A]

        matches = nearest_gt.masked_fill(best_iou < self.low_threshold, self.BELOW_LOW_THRESHOLD)
        between = (best_iou >= self.low_threshold) & (best_iou < self.high_threshold)
        matches = matches.masked_fill(between, self.BETWEEN_THRESHOLDS)
        if self.allow_low_quality_matches:
            is_nearest = _is_nearest_to_some_gt(gt_boxes, parts, per_gt)
            # The match kept is the one this box overlaps most, which need not be the ground truth
            # that it is nearest to.
            matches = torch.where(is_nearest, nearest_gt, matches)
        return matches


def _is_nearest_to_some_gt(
    gt_boxes: Tensor, parts: tuple[Tensor, ...], best_in_part: list[Tensor]
) -> Tensor:
    """Bool ``[A]``: no box has a larger IoU with some ground truth; equals are all nearest.

    Args:
        gt_boxes: ``[G, 4]``.
        parts: the boxes, in parts of ``[B, 4]``.
        best_in_part: for each part, the largest IoU of each ground truth, ``[G]``.
    """
    best = torch.stack(best_in_part).amax(dim=0)  # [G]
    nearest = []
    for part, part_best in zip(parts, best_in_part, strict=True):
        # The few ground truths whose nearest box is in this part; the others equal it nowhere.
        here = slots_to_compute(part_best == best)  # [G']
        iou = box_iou(gt_boxes[here], part)  # [G', B]
        nearest.append((iou == best[here, None]).any(dim=0))
    return torch.cat(nearest)


def gather_matched_boxes(gt_boxes: Tensor, matches: Tensor, boxes: Tensor) -> Tensor:
    """The ground-truth box of each of ``boxes [A, 4]``, ``[A, 4]``.

    Unmatched boxes (negative ``matches [A]``) get the first ground truth, which no loss reads;
    without ground truth (``gt_boxes [0, 4]``) each box stands for itself, so that its regression
    target is finite.
    """
    if len(gt_boxes) == 0:
        return boxes
    return gt_boxes[matches.clamp(min=0)]
