"""Matching by the matrix of IoUs, computed in parts."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.host_sync import entries_to_compute
from maskrcnn_scratch.ops.boxes import box_iou

# IoUs computed at a time: on a CPU as many as its cache holds, on a GPU enough to fill it.
PAIRS_AT_ONCE_CPU = 2**18
PAIRS_AT_ONCE_CUDA = 2**24


def max_iou(
    gt_boxes: Tensor, boxes: Tensor, find_low_quality: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``[G, 4]``, ``[A, 4]`` -> highest IoU, its ground truth, low-quality match; each ``[A]``."""
    pairs_at_once = PAIRS_AT_ONCE_CUDA if boxes.is_cuda else PAIRS_AT_ONCE_CPU
    parts = boxes.split(max(1, pairs_at_once // len(gt_boxes)))  # each [B, 4]

    per_box, per_gt = [], []
    for part in parts:
        iou = box_iou(gt_boxes, part)  # [G, B]
        per_box.append(iou.max(dim=0))
        per_gt.append(iou.amax(dim=1))  # [G]
    best_iou = torch.cat([best.values for best in per_box])  # [A]
    best_gt = torch.cat([best.indices for best in per_box])  # [A]
    if not find_low_quality:
        return best_iou, best_gt, torch.zeros_like(best_gt, dtype=torch.bool)
    return best_iou, best_gt, _is_low_quality_match(gt_boxes, parts, per_gt)


def _is_low_quality_match(
    gt_boxes: Tensor, parts: tuple[Tensor, ...], best_in_part: list[Tensor]
) -> Tensor:
    """Bool ``[A]``: no box has a larger IoU with some ground truth.

    Args:
        gt_boxes: ``[G, 4]``.
        parts: the boxes, in parts of ``[B, 4]``.
        best_in_part: for each part, the largest IoU of each ground truth, ``[G]``.
    """
    best = torch.stack(best_in_part).amax(dim=0)  # [G]
    low_quality = []
    for part, part_best in zip(parts, best_in_part, strict=True):
        # The few ground truths whose low_quality box is in this part; the others equal it nowhere.
        here = entries_to_compute(part_best == best)  # [G']
        iou = box_iou(gt_boxes[here], part)  # [G', B]
        low_quality.append((iou == best[here, None]).any(dim=0))
    return torch.cat(low_quality)
