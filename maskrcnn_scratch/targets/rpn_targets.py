"""Targets of the RPN: which anchors are objects, and which object (Faster R-CNN, section 3.1.2).

Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_scratch import interfaces
from maskrcnn_scratch.structures import IGNORE_LABEL
from maskrcnn_scratch.targets.matcher import Matcher, gather_matched_boxes


def assign_targets_to_anchors(
    anchors: Sequence[Tensor], gt_boxes: Sequence[Tensor], matcher: interfaces.Matcher
) -> tuple[list[Tensor], list[Tensor]]:
    """Labels each anchor as object, background or ignored.

    Args:
        anchors: ``[A, 4]`` per image.
        gt_boxes: ``[G, 4]`` per image, in the pixels of the resized image. Without objects all
            anchors are background.
        matcher: see ``Matcher``.

    Returns:
        labels: float32 ``[A]`` per image: 1 object, 0 background, ``IGNORE_LABEL`` ignored.
        matched_gt_boxes: ``[A, 4]`` per image; meaningful for objects only.
    """
    labels, matched_gt_boxes = [], []
    for anchors_in_image, gt_boxes_in_image in zip(anchors, gt_boxes, strict=True):
        matched_idxs = matcher(gt_boxes_in_image, anchors_in_image)
        ignored = matched_idxs == Matcher.BETWEEN_THRESHOLDS
        is_object = (matched_idxs >= 0).to(torch.float32)
        labels.append(is_object.masked_fill(ignored, IGNORE_LABEL))
        matched_gt_boxes.append(
            gather_matched_boxes(gt_boxes_in_image, matched_idxs, anchors_in_image)
        )
    return labels, matched_gt_boxes
