"""Matching: which ground-truth box each box overlaps most.

Letters: ``G`` ground-truth boxes, ``A`` boxes (anchors or proposals) of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops._library import NAMESPACE, compiled, kernels
from maskrcnn_scratch.structures import at_least_float32


def max_iou(
    gt_boxes: Tensor, boxes: Tensor, find_low_quality: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The largest entry of each column of ``box_iou(gt_boxes, boxes)``, which is never kept whole.

    Memory is a 256th of what all pairs would take. IoUs are rounded after every operation, as in
    torchvision, so that equal ones stay equal; NaN (from two boxes without area) is the largest, as
    in ``torch.max``. On the CPU a kernel of its own, on other devices PyTorch's operators.

    Args:
        gt_boxes: ``[G, 4]``, at least one; float32 or float64 (half types as float32).
        boxes: ``[A, 4]``, at least one.
        find_low_quality: whether the third result is wanted; if not it is all False.

    Returns:
        iou: ``[A]``, of each box with the ground truth that it overlaps most.
        gt: int64 ``[A]``, which one that is, the first of equals.
        low_quality: bool ``[A]``: no box has a larger IoU with some ground truth; equals are all
            low_quality.

    Raises:
        RuntimeError: shapes or dtypes that do not fit, or no box in one of them.
    """
    on_cpu = boxes.device.type == "cpu"
    return (kernels.max_iou if on_cpu else reference.max_iou)(
        at_least_float32(gt_boxes), at_least_float32(boxes), find_low_quality
    )


def _fake(gt_boxes: Tensor, boxes: Tensor, find_low_quality: bool) -> tuple[Tensor, Tensor, Tensor]:
    count = boxes.shape[0]
    return (
        boxes.new_empty(count),
        boxes.new_empty(count, dtype=torch.int64),
        boxes.new_empty(count, dtype=torch.bool),
    )


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::max_iou", _fake)
