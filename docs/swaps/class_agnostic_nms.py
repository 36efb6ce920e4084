"""NMS of all classes together: of boxes that overlap, only the best stays, whatever its class.

The default suppresses within each class, as Fast R-CNN (Girshick 2015, section 3) does, and may
report one object under two classes. YOLO and its kin offer this variant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.ops import batched_nms_padded


def class_agnostic_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    max_out: int,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    """An ``interfaces.NMS``: one group in place of one per class."""
    one_group = torch.zeros_like(groups)
    return batched_nms_padded(boxes, scores, one_group, iou_threshold, max_out, num_groups=1)


def build(num_classes: int, **options: Any) -> MaskRCNN:
    return small_maskrcnn(num_classes, box_nms=class_agnostic_nms, **options)
