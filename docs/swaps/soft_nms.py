"""Soft-NMS (Bodla et al. 2017, "Improving Object Detection With One Line of Code", section 3).

Overlapping boxes get a lower score instead of being dropped, so that an object beside another is
not lost. The NMS returns scores, which replace those that it was given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.ops.boxes import box_iou


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    max_out: int,
    num_groups: int,
    sigma: float = 0.5,
    lowest: float = 0.001,
) -> tuple[Tensor, Tensor, Tensor]:
    """An ``interfaces.NMS``; ``iou_threshold`` is not used.

    Each round selects the best box of each image and multiplies the scores of the others of its
    class by exp(-IoU^2 / sigma) (Eq. 3). Boxes that fall below ``lowest`` are dropped.
    """
    image = torch.arange(boxes.shape[0], device=boxes.device)
    indices, kept = [], []
    for _ in range(max_out):
        score, best = scores.max(dim=1)  # [N]
        indices.append(best)
        kept.append(score)
        iou = box_iou(boxes[image, best][:, None], boxes)[:, 0].nan_to_num()  # [N, K]
        iou = iou * (groups == groups[image, best][:, None])
        scores = scores * torch.exp(-(iou**2) / sigma)
        scores = scores.scatter(1, best[:, None], -torch.inf)  # it is selected once
    selected = torch.stack(kept, dim=1)  # [N, max_out]
    return torch.stack(indices, dim=1), (selected > lowest).sum(dim=1), selected


def build(num_classes: int, **options: Any) -> MaskRCNN:
    return small_maskrcnn(num_classes, box_nms=soft_nms, **options)
