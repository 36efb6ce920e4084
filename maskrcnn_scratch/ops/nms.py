"""Non-maximum suppression: among boxes that overlap, the one with the best score is kept.

Shapes: see ``structures``; ``K`` candidates per image, padding included.

The functions with torchvision's names take the boxes of one image. Those that end in ``_padded``
take a batch in which each image has the same number of candidates; padding has a score of -inf.
The algorithm step by step is in ``reference/nms.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from maskrcnn_scratch.ops._library import NAMESPACE, compiled, kernels
from maskrcnn_scratch.ops.group_offset import has_few_boxes, offset_boxes_by_group, offset_limit
from maskrcnn_scratch.structures import at_least_float32


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    max_out: int,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    """NMS of several images at once, within each group (pyramid level or class), at fixed size.

    The greedy algorithm: boxes are visited by descending score, and ties are broken by the lower
    index. A box is kept unless its IoU with a box of the same group that was kept before is above
    ``iou_threshold``. Areas and IoUs are rounded after every operation, as in torchvision. An IoU
    that is NaN (a box holds NaN, or neither box has an area) suppresses nothing.

    Args:
        boxes: ``[N, K, 4]``, float32 or float64; half types are computed in float32.
        scores: ``[N, K]`` in the dtype of the boxes; -inf or NaN marks padding.
        groups: int64 ``[N, K]`` in ``[0, num_groups)``.
        iou_threshold: IoU above which a box is suppressed.
        max_out: largest number of boxes to keep per image.
        num_groups: upper bound of the group numbers.

    Returns:
        indices: int64 ``[N, max_out]`` in ``[0, K)``, the kept boxes of each image by descending
            score. Padding is 0, so that it can be gathered with.
        count: int64 ``[N]``, number of boxes kept per image. 0 where an image has no candidate.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; on the CPU also a group out of range.
    """
    return kernels.nms_padded(
        at_least_float32(boxes), at_least_float32(scores), groups, iou_threshold, max_out,
        num_groups,
    )  # fmt: skip


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """NMS of the boxes of one image, with the signature of ``torchvision.ops.nms``.

    Args:
        boxes: ``[K, 4]``.
        scores: ``[K]``. Every box is a candidate: -inf is a score like any other, and NaN is the
            best score, as in ``torch.sort``.
        iou_threshold: IoU above which a box is suppressed.

    Returns:
        int64, indices of the kept boxes by descending score; ties are broken by the lower index.
        Empty if there are no boxes.

    Raises:
        RuntimeError: boxes that are not ``[K, 4]``, or scores that are not ``[K]``.
    """
    _check_flat(boxes, scores)
    groups = torch.zeros_like(scores, dtype=torch.int64)
    return _keep(boxes, _as_candidates(scores), groups, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """NMS within each group, with the signature and the result of ``torchvision.ops.batched_nms``.

    torchvision treats few boxes differently from many, see ``group_offset``.

    Args:
        boxes: ``[K, 4]``.
        scores: ``[K]``, see :func:`nms`.
        idxs: int64 ``[K]``, the group of each box: any numbers.
        iou_threshold: IoU above which a box of the same group is suppressed.

    Returns:
        int64, indices of the kept boxes by descending score. Up to ``offset_limit`` boxes ties
        are broken by the lower index, above it as torchvision's ``torch.sort`` breaks them.

    Raises:
        RuntimeError: boxes that are not ``[K, 4]``, or scores that are not ``[K]``.
    """
    if boxes.numel() == 0:  # also of shape [0], as in torchvision
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    _check_flat(boxes, scores)
    boxes, scores = at_least_float32(boxes), _as_candidates(scores)
    limit = offset_limit(boxes.device)
    shifted = offset_boxes_by_group(boxes[None], scores[None], idxs[None], limit)[0]
    # Shifted boxes are one group, as in torchvision: boxes with negative coordinates can overlap
    # those of another group in spite of the offset.
    few = has_few_boxes(scores[None], limit)
    groups = torch.unique(idxs, return_inverse=True)[1].masked_fill(few, 0)  # [K] in [0, K)
    keep = _keep(shifted, scores, groups, iou_threshold)
    ascending = keep.sort()[0]
    return torch.where(few, keep, ascending[scores[ascending].sort(descending=True)[1]])


def batched_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    max_out: int,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    """:func:`nms_padded` with the rounding of :func:`batched_nms`. The model calls this one.

    The operator itself shifts the boxes, see ``group_offset``.

    Args, results and errors are those of :func:`nms_padded`. Coordinates must not be negative: the
    model clips boxes to the image first.
    """
    limit = offset_limit(boxes.device)
    if torch.compiler.is_compiling() or is_tracing():  # exported as ordinary operators
        shifted = offset_boxes_by_group(boxes, scores, groups, limit)
        return nms_padded(shifted, scores, groups, iou_threshold, max_out, num_groups)
    return kernels.nms_padded(
        at_least_float32(boxes), at_least_float32(scores), groups, iou_threshold, max_out,
        num_groups, limit,
    )  # fmt: skip


def _as_candidates(scores: Tensor) -> Tensor:
    """Scores ``[K]`` in the same order, of which none is the -inf or NaN that marks padding."""
    scores = at_least_float32(scores)
    lowest = torch.finfo(scores.dtype).min
    return scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=lowest)


def _check_flat(boxes: Tensor, scores: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise RuntimeError(f"boxes must be [K, 4], not {list(boxes.shape)}")
    if scores.dim() != 1:
        raise RuntimeError(f"scores must be [K], not {list(scores.shape)}")


def _keep(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms_padded` of one image; the indices without their padding."""
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
    num_groups: int, offset_limit: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return groups.new_empty((boxes.shape[0], max_out)), groups.new_empty((boxes.shape[0],))


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::nms_padded", _fake)
