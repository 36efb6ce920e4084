"""The best match of each box among the ground-truth boxes, and low-quality matches.

Shapes: see ``structures``; here ``A`` boxes are anchors or proposals. Step by step in
``reference/max_iou.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops._library import DEVICES, NAMESPACE, compiled, kernels
from maskrcnn_scratch.structures import at_least_float32


def max_iou(
    gt_boxes: Tensor, boxes: Tensor, find_low_quality_matches: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """For each box, the ground-truth box with the highest IoU, without storing the IoU matrix.

    Faster R-CNN, Section 3.1.2, labels two kinds of anchors positive: (ii) an anchor whose IoU with
    some ground-truth box is above a threshold, and (i) the anchors with the highest IoU with a
    ground-truth box, even where that IoU is low. torchvision calls the latter low-quality matches.
    ``iou`` and ``gt`` decide (ii), ``is_low_quality_match`` is (i).

    IoUs are rounded after every operation, as in torchvision, so that equal IoUs compare equal. NaN
    (from two boxes without area) is the largest, as in ``torch.max``. On the CPU and on CUDA the
    kernels in ``csrc/max_iou`` run; on other devices the reference implementation, which computes
    the matrix in parts.

    Args:
        gt_boxes: ``[G, 4]``, at least one; float32 or float64 (half types are computed in float32).
        boxes: ``[A, 4]`` in the same dtype, at least one.
        find_low_quality_matches: compute the third result; without it, it is all False.

    Returns:
        iou: ``[A]``, the highest IoU of each box.
        gt: int64 ``[A]`` in ``[0, G)``, the ground-truth box that it is reached with; ties are
            broken by the lower index.
        is_low_quality_match: bool ``[A]``: some ground-truth box has no higher IoU with any other
            box. Boxes that tie for it are all True.

    Raises:
        RuntimeError: shapes or dtypes that do not fit, or no box in one of the two.
    """
    use_kernel = boxes.device.type in DEVICES
    return (kernels if use_kernel else reference).max_iou(
        at_least_float32(gt_boxes), at_least_float32(boxes), find_low_quality_matches
    )


def _fake(
    gt_boxes: Tensor, boxes: Tensor, find_low_quality_matches: bool
) -> tuple[Tensor, Tensor, Tensor]:
    count = boxes.shape[0]
    return (
        boxes.new_empty(count),
        boxes.new_empty(count, dtype=torch.int64),
        boxes.new_empty(count, dtype=torch.bool),
    )


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::max_iou", _fake)
