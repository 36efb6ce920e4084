"""NMS by its definition: keep the best box, drop the boxes that it suppresses, repeat."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.ops.group_offset import offset_boxes_by_group


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    max_out: int,
    num_groups: int,
    offset_limit: int = 0,
) -> tuple[Tensor, Tensor]:
    """``[N, K, 4]``, ``[N, K]``, ``[N, K]`` -> indices ``[N, max_out]``, count ``[N]``."""
    boxes = offset_boxes_by_group(boxes, scores, groups, offset_limit)
    indices = groups.new_zeros((boxes.shape[0], max_out))
    count = groups.new_zeros(boxes.shape[0])
    for n in range(boxes.shape[0]):
        kept = _greedy(boxes[n], scores[n], groups[n], iou_threshold, max_out)
        indices[n, : len(kept)] = groups.new_tensor(kept)
        count[n] = len(kept)
    return indices, count


def _greedy(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, max_out: int
) -> list[int]:
    rest = (scores > -torch.inf).nonzero().squeeze(1)  # without padding
    rest = rest[scores[rest].argsort(descending=True, stable=True)]
    kept: list[int] = []
    while rest.numel() > 0 and len(kept) < max_out:
        best, rest = rest[0], rest[1:]
        kept.append(int(best))
        iou = box_iou(boxes[best][None], boxes[rest])[0]
        # In double, so that a threshold such as 0.7 is not rounded.
        suppressed = (iou.double() > iou_threshold) & (groups[rest] == groups[best])
        rest = rest[~suppressed]
    return kept
