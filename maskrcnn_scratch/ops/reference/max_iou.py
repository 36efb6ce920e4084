"""Best matches and low-quality matches from the IoU matrix, which is computed in parts.

Shapes: as in ``ops.max_iou``; here ``A'`` boxes are one part of all ``A``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.host_sync import entries_to_compute
from maskrcnn_scratch.ops.boxes import box_iou

# IoUs per part. Estimates: 2**18 float32 fill 1 MiB, a CPU's cache; 2**24 occupy a whole GPU.
PAIRS_AT_ONCE_CPU = 2**18
PAIRS_AT_ONCE_CUDA = 2**24


def max_iou(
    gt_boxes: Tensor, boxes: Tensor, find_low_quality_matches: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``[G, 4]``, ``[A, 4]`` -> best IoU, its ground truth, low-quality match; each ``[A]``."""
    pairs_at_once = PAIRS_AT_ONCE_CUDA if boxes.is_cuda else PAIRS_AT_ONCE_CPU
    parts = boxes.split(max(1, pairs_at_once // len(gt_boxes)))  # each [A', 4]

    per_box, per_gt = [], []
    for part in parts:
        iou = box_iou(gt_boxes, part)  # [G, A']
        per_box.append(iou.max(dim=0))
        per_gt.append(iou.amax(dim=1))  # [G]
    best_iou = torch.cat([best.values for best in per_box])  # [A]
    best_gt = torch.cat([best.indices for best in per_box])  # [A]
    if not find_low_quality_matches:
        return best_iou, best_gt, torch.zeros_like(best_gt, dtype=torch.bool)
    return best_iou, best_gt, _low_quality_matches(gt_boxes, parts, per_gt)


def _low_quality_matches(
    gt_boxes: Tensor, parts: tuple[Tensor, ...], best_in_part: list[Tensor]
) -> Tensor:
    """Bool ``[A]``: the box has the highest IoU of all with some ground-truth box.

    Args:
        gt_boxes: ``[G, 4]``.
        parts: the boxes, in parts of ``[A', 4]``.
        best_in_part: for each part, the highest IoU of each ground-truth box, ``[G]``.
    """
    best = torch.stack(best_in_part).amax(dim=0)  # [G]
    matches = []
    for part, part_best in zip(parts, best_in_part, strict=True):
        # Only ground truths whose highest IoU is reached in this part can have a match in it.
        here = entries_to_compute(part_best == best)  # [G']
        iou = box_iou(gt_boxes[here], part)  # [G', A']
        matches.append((iou == best[here, None]).any(dim=0))
    return torch.cat(matches)
