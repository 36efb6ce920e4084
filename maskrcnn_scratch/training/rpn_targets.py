"""What the RPN should say about each anchor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_scratch import interfaces
from maskrcnn_scratch.training.matcher import Matcher, gather_matched_boxes


def assign_targets_to_anchors(
    anchors: Sequence[Tensor], gt_boxes: Sequence[Tensor], matcher: interfaces.Matcher
) -> tuple[list[Tensor], list[Tensor]]:
    """Labels each anchor as object, background or neither.

    Args:
        anchors: ``[A, 4]`` for each image.
        gt_boxes: ``[G, 4]`` for each image, in the coordinates of the resized image. Without
            objects all anchors are background.
        matcher: see ``Matcher``.

    Returns:
        labels: float32 ``[A]`` for each image: 1 object, 0 background, -1 neither.
        matched_gt_boxes: ``[A, 4]`` for each image; only an object's row has a meaning.
    """
    labels, matched_gt_boxes = [], []
    for anchors_in_image, gt_boxes_in_image in zip(anchors, gt_boxes, strict=True):
        matches = matcher(gt_boxes_in_image, anchors_in_image)
        labels_in_image = (matches >= 0).to(torch.float32)
        labels.append(labels_in_image.masked_fill(matches == Matcher.BETWEEN_THRESHOLDS, -1))
        matched_gt_boxes.append(gather_matched_boxes(gt_boxes_in_image, matches, anchors_in_image))
    return labels, matched_gt_boxes
