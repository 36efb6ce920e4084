"""Which ground-truth box each anchor or proposal belongs to (Faster R-CNN, section 3.1.2).

G ground-truth boxes, A boxes (anchors or proposals) of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops import max_iou


class Matcher:
    """Gives each box the ground truth it overlaps most, if the overlap suffices.

    The decisions are those of torchvision's ``Matcher`` on ``box_iou(gt_boxes, boxes)``, in bounded
    memory: see ``ops.max_iou``.

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
        best_iou, best_gt, is_nearest = max_iou(gt_boxes, boxes, self.allow_low_quality_matches)
        matches = best_gt.masked_fill(best_iou < self.low_threshold, self.BELOW_LOW_THRESHOLD)
        between = (best_iou >= self.low_threshold) & (best_iou < self.high_threshold)
        matches = matches.masked_fill(between, self.BETWEEN_THRESHOLDS)
        # The match kept is the ground truth that the box overlaps most, which need not be the one
        # that it is nearest to.
        return torch.where(is_nearest, best_gt, matches)


def gather_matched_boxes(gt_boxes: Tensor, matches: Tensor, boxes: Tensor) -> Tensor:
    """The ground-truth box of each of ``boxes [A, 4]``, ``[A, 4]``.

    Unmatched boxes (negative ``matches [A]``) get the first ground truth, which no loss reads;
    without ground truth (``gt_boxes [0, 4]``) each box stands for itself, so that its regression
    target is finite.
    """
    if len(gt_boxes) == 0:
        return boxes
    return gt_boxes[matches.clamp(min=0)]
