"""Which ground-truth box each anchor or proposal is matched to (Faster R-CNN, section 3.1.2).

"Boxes" are the anchors or the proposals of one image. Shapes: see ``structures``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops import max_iou


class Matcher:
    """Matches each box to the ground truth with the highest IoU, if the IoU is high enough.

    The result equals that of torchvision's ``Matcher`` on ``box_iou(gt_boxes, boxes)``; the matrix
    ``[G, A]`` is never stored (``ops.max_iou``).

    Args:
        high_threshold: boxes with at least this IoU are matched.
        low_threshold: boxes with a lower IoU are background; those between the two thresholds are
            neither.
        allow_low_quality_matches: whether, for every ground truth, the boxes with the highest IoU
            are matched too, even below the thresholds (rule (i) of section 3.1.2; the RPN uses it).
            Without it an object that no anchor overlaps well would have no positive anchor.
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
            int64 ``[A]``: index of the ground truth (ties: the lowest index),
            ``BELOW_LOW_THRESHOLD`` or ``BETWEEN_THRESHOLDS``. Without ground truth all are
            ``BELOW_LOW_THRESHOLD``.
        """
        if len(gt_boxes) == 0 or len(boxes) == 0:
            return boxes.new_full((len(boxes),), self.BELOW_LOW_THRESHOLD, dtype=torch.int64)
        best_iou, best_gt, is_low_quality_match = max_iou(
            gt_boxes, boxes, self.allow_low_quality_matches
        )
        below = best_iou < self.low_threshold
        between = (best_iou >= self.low_threshold) & (best_iou < self.high_threshold)
        matched_idxs = best_gt.masked_fill(below, self.BELOW_LOW_THRESHOLD)
        matched_idxs = matched_idxs.masked_fill(between, self.BETWEEN_THRESHOLDS)
        # As in torchvision such a box is matched to the ground truth that it overlaps most, which
        # need not be the one that it is the best box of.
        return torch.where(is_low_quality_match, best_gt, matched_idxs)


def gather_matched_boxes(gt_boxes: Tensor, matched_idxs: Tensor, boxes: Tensor) -> Tensor:
    """The ground-truth box that each of ``boxes [A, 4]`` is matched to, ``[A, 4]``.

    Unmatched boxes (negative ``matched_idxs [A]``) get the first ground truth, which no loss reads.
    Without ground truth (``gt_boxes [0, 4]``) each box is returned itself, so that its regression
    target is finite.
    """
    if len(gt_boxes) == 0:
        return boxes
    return gt_boxes[matched_idxs.clamp(min=0)]
