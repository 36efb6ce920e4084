"""Non-maximum suppression: of boxes that overlap, the one with the best score stays.

Letters: ``N`` images, ``K`` boxes (slots) an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.host_sync import can_have_dynamic_shapes
from maskrcnn_scratch.ops._library import NAMESPACE, compiled, kernels
from maskrcnn_scratch.structures import at_least_float32


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    max_out: int,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    """NMS of many images and groups (levels, classes) at once, in tensors of fixed size.

    Boxes are taken by descending score, the lower slot first among equals. A box is kept unless an
    intersection over union above ``iou_threshold`` joins it to a box of its group that was kept
    before. Areas and IoU are rounded after every operation, as in torchvision; a NaN (from a
    box, or from two boxes without area) suppresses nothing.

    Args:
        boxes: ``[N, K, 4]``, float32 or float64; half types are computed with as float32.
        scores: ``[N, K]`` in the boxes' dtype. -inf or NaN marks a slot without a box.
        groups: int64 ``[N, K]`` in ``[0, num_groups)``.
        iou_threshold: above which a box is suppressed.
        max_out: how many boxes of an image to keep at most.
        num_groups: how many groups there are at most.

    Returns:
        indices: int64 ``[N, max_out]``, the slots of the kept boxes, best first. The entries from
            ``count`` on are 0, so that they can be gathered with.
        count: int64 ``[N]``, how many boxes of each image were kept.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; on the CPU also a group out of range.
    """
    return kernels.nms_padded(
        at_least_float32(boxes), at_least_float32(scores), groups, iou_threshold, max_out,
        num_groups,
    )  # fmt: skip


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """NMS of one set of boxes, with the signature of ``torchvision.ops.nms``.

    Args:
        boxes: ``[K, 4]``.
        scores: ``[K]``. Every box is a candidate: -inf is a score like another, and NaN is the
            best one, as in ``torch.sort``.
        iou_threshold: above which a box is suppressed.

    Returns:
        int64, indices of the kept boxes, best first; stable among equal scores.
    """
    _check_flat(boxes, scores)
    groups = torch.zeros_like(scores, dtype=torch.int64)
    return _keep(boxes, _without_empty_slots(scores), groups, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """NMS in which boxes of different groups leave each other alone.

    Has the signature and the keep list of ``torchvision.ops.batched_nms``, which solves small
    problems in another way than large ones: see :func:`offset_boxes_by_group`.

    Args:
        boxes: ``[K, 4]``.
        scores: ``[K]``, see :func:`nms`.
        idxs: int64 ``[K]``, the group of each box: any numbers.
        iou_threshold: above which a box is suppressed.

    Returns:
        int64, indices of the kept boxes, best first; stable among equal scores up to
        :func:`offset_limit` boxes, above it in the order of torchvision's ``torch.sort``.
    """
    if boxes.numel() == 0:  # also of shape [0], as in torchvision
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    _check_flat(boxes, scores)
    boxes, scores = at_least_float32(boxes), _without_empty_slots(scores)
    limit = offset_limit(boxes.device)
    shifted = offset_boxes_by_group(boxes[None], scores[None], idxs[None], limit)[0]
    # Shifted boxes are one group: torchvision trusts the offset alone, even for boxes left of zero.
    few = _has_few_boxes(scores[None], limit)
    groups = torch.unique(idxs, return_inverse=True)[1].masked_fill(few, 0)  # [K] in [0, K)
    keep = _keep(shifted, scores, groups, iou_threshold)
    ascending = keep.sort()[0]
    return torch.where(few, keep, ascending[scores[ascending].sort(descending=True)[1]])


def offset_limit(device: torch.device) -> int:
    """Up to how many boxes ``torchvision.ops.batched_nms`` offsets the groups."""
    return 1000 if device.type == "cpu" else 25_000


def offset_boxes_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, limit: int) -> Tensor:
    """Moves each group to a place of its own, where an image has at most ``limit`` boxes.

    This is how ``torchvision.ops.batched_nms`` keeps the groups of a small problem apart: box
    coordinates grow by ``group * (largest coordinate of the image + 1)``. :func:`nms_padded` has no
    need of it, but the float32 sum rounds the coordinates, and so the IoUs: equal keep lists need
    the same rounding. Larger problems are solved group by group, with boxes as they are.

    Args:
        boxes: ``[N, K, 4]``.
        scores: ``[N, K]``; slots with -inf or NaN hold no box and do not count.
        groups: int64 ``[N, K]``.
        limit: see :func:`offset_limit`.

    Returns:
        ``[N, K, 4]``.
    """
    if boxes.shape[1] == 0:
        return boxes
    few = _has_few_boxes(scores, limit)[:, None, None]  # [N, 1, 1]
    if can_have_dynamic_shapes(scores) and not few.any():
        return boxes
    valid = scores > -torch.inf  # [N, K]
    largest = boxes.masked_fill(~valid[..., None], -torch.inf).amax((1, 2))  # [N]
    offsets = groups.to(boxes.dtype) * (largest + 1)[:, None]  # [N, K]
    return torch.where(few, boxes + offsets[..., None], boxes)


def batched_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    max_out: int,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    """:func:`nms_padded` with the rounding of :func:`batched_nms`: what the model itself calls.

    Boxes must not reach left of or above zero.
    """
    shifted = offset_boxes_by_group(boxes, scores, groups, offset_limit(boxes.device))
    return nms_padded(shifted, scores, groups, iou_threshold, max_out, num_groups)


def _has_few_boxes(scores: Tensor, limit: int) -> Tensor:
    """``[N]`` bool: the image has at most ``limit`` boxes."""
    return (scores > -torch.inf).sum(1) <= limit


def _without_empty_slots(scores: Tensor) -> Tensor:
    """Scores of the same order in which -inf and NaN do not mark an empty slot."""
    scores = at_least_float32(scores)
    lowest = torch.finfo(scores.dtype).min
    return scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=lowest)


def _check_flat(boxes: Tensor, scores: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [K, 4], not {list(boxes.shape)}")
    if scores.dim() != 1:
        raise ValueError(f"scores must be [K], not {list(scores.shape)}")


def _keep(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms_padded` of one image, without padding."""
    num_boxes = boxes.shape[0]
    indices, count = nms_padded(
        boxes[None], scores[None], groups[None], iou_threshold, num_boxes, num_boxes
    )
    kept = count.item()
    torch._check(kept >= 0)
    torch._check(kept <= num_boxes)
    return indices[0, :kept]


def _fake(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, max_out: int,
    num_groups: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return groups.new_empty((boxes.shape[0], max_out)), groups.new_empty((boxes.shape[0],))


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::nms_padded", _fake)
