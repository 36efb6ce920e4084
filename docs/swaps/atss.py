"""ATSS (Zhang et al. 2020, "Bridging the Gap Between Anchor-based and Anchor-free Detection").

A matcher without a fixed IoU threshold: each object has its own, from the anchors that are nearest
to its centre on every level (section 4.1, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch import MaskRCNN, Matcher
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.ops.boxes import box_iou


def centers(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2  # [..., 2]


class ATSSMatcher:
    """An ``interfaces.Matcher`` that asks for the anchors per level.

    Args:
        nearest: candidates per object, level and anchor of a location (the paper's k).
        anchors: per location.
    """

    def __init__(self, nearest: int = 9, anchors: int = 1) -> None:
        self.nearest = nearest * anchors

    def __call__(
        self, gt_boxes: Tensor, boxes: Tensor, level_sizes: Sequence[int] | None = None
    ) -> Tensor:
        """int64 ``[A]``: the object of each of ``boxes [A, 4]``, or ``BELOW_LOW_THRESHOLD``."""
        background = boxes.new_full((len(boxes),), Matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64)
        if len(gt_boxes) == 0 or len(boxes) == 0:
            return background
        distance = torch.cdist(centers(gt_boxes), centers(boxes))  # [G, A]
        candidates, first = [], 0
        for size in level_sizes or [len(boxes)]:
            level = distance[:, first : first + size]
            nearest = level.topk(min(self.nearest, size), dim=1, largest=False).indices
            candidates.append(nearest + first)
            first += size
        candidate = torch.cat(candidates, dim=1)  # [G, Q] in [0, A)

        iou = box_iou(gt_boxes, boxes).nan_to_num()  # [G, A]
        of_candidates = iou.gather(1, candidate)  # [G, Q]
        threshold = of_candidates.mean(1) + of_candidates.std(1, correction=0)  # [G]
        x, y = centers(boxes)[candidate].unbind(2)  # [G, Q]
        left, top, right, bottom = gt_boxes[:, :, None].unbind(1)  # [G, 1]
        inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        positive = (of_candidates >= threshold[:, None]) & inside  # [G, Q]

        # An anchor that is positive for several objects belongs to the one that it overlaps most.
        claimed = torch.full_like(iou, -1.0)
        claimed.scatter_(1, candidate, of_candidates.where(positive, -1.0))
        best, objects = claimed.max(dim=0)  # [A]
        return torch.where(best >= 0, objects, background)


def build(num_classes: int, **options: Any) -> MaskRCNN:
    matcher = ATSSMatcher(anchors=3)
    return small_maskrcnn(num_classes, rpn_proposal_matcher=matcher, **options)
