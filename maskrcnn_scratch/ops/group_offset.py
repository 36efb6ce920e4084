"""The offset by which torchvision's NMS keeps boxes of different groups apart.

Shapes: see ``structures``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.host_sync import can_have_dynamic_shapes


def offset_limit(device: torch.device) -> int:
    """Number of boxes up to which ``torchvision.ops.batched_nms`` offsets the groups."""
    return 1000 if device.type == "cpu" else 25_000


def offset_boxes_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, limit: int) -> Tensor:
    """Shifts the boxes of each group so far that groups do not overlap, in images with few boxes.

    ``torchvision.ops.batched_nms`` does this, and then runs NMS without groups: coordinates grow by
    ``group * (largest coordinate of the image + 1)``. ``nms_padded`` knows groups and needs no
    offset. But the sum is rounded to float32, which changes IoUs by a few ulp, so the same offset
    is needed for the same result. torchvision treats images with more boxes group by group, without
    an offset.

    Args:
        boxes: ``[N, K, 4]``.
        scores: ``[N, K]``; padding (-inf or NaN) does not count as a box.
        groups: int64 ``[N, K]``.
        limit: number of boxes per image up to which they are shifted, see ``offset_limit``.

    Returns:
        ``[N, K, 4]``. Images with more boxes are unchanged.
    """
    if boxes.shape[1] == 0:
        return boxes
    few = has_few_boxes(scores, limit)[:, None, None]  # [N, 1, 1]
    if can_have_dynamic_shapes(scores) and not few.any():
        return boxes
    valid = scores > -torch.inf  # [N, K]
    largest = boxes.masked_fill(~valid[..., None], -torch.inf).amax((1, 2))  # [N]
    offsets = groups.to(boxes.dtype) * (largest + 1)[:, None]  # [N, K]
    return torch.where(few, boxes + offsets[..., None], boxes)


def has_few_boxes(scores: Tensor, limit: int) -> Tensor:
    """Bool ``[N]``: the image has at most ``limit`` boxes, not counting padding."""
    return (scores > -torch.inf).sum(1) <= limit
