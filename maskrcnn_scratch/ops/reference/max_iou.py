"""Matching by the matrix of IoUs, computed in parts."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.structures import slots_to_compute

# IoUs computed at a time: on a CPU as many as its cache holds, on a GPU enough to fill it.
PAIRS_AT_ONCE_CPU = 2**18
PAIRS_AT_ONCE_CUDA = 2**24


def max_iou(gt_boxes: Tensor, boxes: Tensor, find_nearest: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``[G, 4]``, ``[A, 4]`` -> largest IoU ``[A]``, its ground truth ``[A]``, nearest ``[A]``."""
    pairs_at_once = PAIRS_AT_ONCE_CUDA if boxes.is_cuda else PAIRS_AT_ONCE_CPU
    parts = boxes.split(max(1, pairs_at_once // len(gt_boxes)))  # each [B, 4]

    per_box, per_gt = [], []
    for part in parts:
        iou = box_iou(gt_boxes, part)  # [G, B]
        per_box.append(iou.max(dim=0))
        per_gt.append(iou.amax(dim=1))  # [G]
    best_iou = torch.cat([best.values for best in per_box])  # [A]
    best_gt = torch.cat([best.indices for best in per_box])  # [A]
    if not find_nearest:
        return best_iou, best_gt, torch.zeros_like(best_gt, dtype=torch.bool)
    return best_iou, best_gt, _is_nearest_to_some_gt(gt_boxes, parts, per_gt)


def _is_nearest_to_some_gt(
    gt_boxes: Tensor, parts: tuple[Tensor, ...], best_in_part: list[Tensor]
) -> Tensor:
    """Bool ``[A]``: no box has a larger IoU with some ground truth.

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
