"""Which kept box suppressed each of the others in NMS.

Shapes: see ``structures``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_scratch.inspect.selection import Selection
from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.ops.group_offset import offset_boxes_by_group, offset_limit
from maskrcnn_scratch.ops.nms import batched_nms_padded, nms_padded

NOBODY = -1  # no box suppressed this one
NO_RANK = -1  # suppressed, or filtered out before NMS
KEPT_AT_ONCE = 256  # rows of the IoU matrix that are in memory at a time


@dataclass(frozen=True, eq=False)
class Suppression:
    """What NMS did with each of its ``K`` candidates.

    Attributes:
        rank: int64 ``[K]``: position among the boxes that nothing suppressed, best first; those
            from ``Selection.max_out`` on are beyond the cap. ``NO_RANK`` for the others.
        suppressor: int64 ``[K]``: the candidate that suppressed this one, which is the best of
            those that could; ``NOBODY`` for the others.
        iou: ``[K]``: IoU with the suppressor, 0 without one.
    """

    rank: Tensor
    suppressor: Tensor
    iou: Tensor


def suppressed_by(selection: Selection) -> Suppression | None:
    """For every candidate that NMS dropped, the kept box that suppressed it, and their IoU.

    Returns:
        None for an NMS that is not one of ``ops.nms``: what it drops, and why, is not known.
    """
    if selection.nms not in (batched_nms_padded, nms_padded):
        return None
    boxes, scores, groups = selection.boxes, selection.scores, selection.groups
    num = len(boxes)
    rank = groups.new_full((num,), NO_RANK)
    suppressor = groups.new_full((num,), NOBODY)
    iou = boxes.new_zeros(num)
    if num == 0:
        return Suppression(rank, suppressor, iou)
    # The same NMS without the cap. Its first boxes are those that were kept.
    indices, counts = selection.nms(
        boxes[None], scores[None], groups[None], selection.iou_threshold, num, selection.num_groups
    )
    survivors = indices[0, : int(counts[0])]
    rank[survivors] = torch.arange(len(survivors), device=rank.device)
    if selection.nms is batched_nms_padded:  # its IoUs are those of the shifted boxes
        limit = offset_limit(boxes.device)
        boxes = offset_boxes_by_group(boxes[None], scores[None], groups[None], limit)[0]
    dropped = ((rank == NO_RANK) & (scores > -torch.inf)).nonzero().squeeze(1)
    for chunk in survivors.split(KEPT_AT_ONCE):  # best first
        if len(dropped) == 0:
            break
        overlap = box_iou(boxes[chunk], boxes[dropped])  # [chunk, dropped]
        suppresses = overlap > selection.iou_threshold
        suppresses &= groups[chunk][:, None] == groups[dropped]
        suppresses &= _comes_before(scores, chunk, dropped)
        first = suppresses.to(torch.uint8).argmax(0)  # the first of equals
        hit = suppresses.any(0)
        suppressor[dropped[hit]] = chunk[first[hit]]
        iou[dropped[hit]] = overlap[first[hit], hit.nonzero().squeeze(1)]
        dropped = dropped[~hit]
    return Suppression(rank, suppressor, iou)


def _comes_before(scores: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    """Whether NMS visits ``kept [R]`` before ``dropped [K]``: bool ``[R, K]``.

    Ties are broken by the lower index.
    """
    better = scores[kept][:, None] > scores[dropped]
    equal = scores[kept][:, None] == scores[dropped]
    return better | (equal & (kept[:, None] < dropped))
