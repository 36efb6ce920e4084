"""From the RPN's predictions to proposals: top-k, decode, clip, filter, NMS.

Letters: ``A`` anchors over all levels, ``K`` candidates an image after top-k, ``P`` proposal slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_scratch.interfaces import NMS
from maskrcnn_scratch.ops import top_k_of_levels
from maskrcnn_scratch.ops.boxes import BoxCoder, clip_boxes_to_image, has_min_size
from maskrcnn_scratch.structures import Proposals, gather_entries, valid_entries


def select_proposals(
    anchors: Tensor,
    objectness: Tensor,
    pred_bbox_deltas: Tensor,
    image_sizes: Tensor,
    *,
    level_sizes: Sequence[int],
    pre_nms_top_n: int,
    post_nms_top_n: int,
    score_thresh: float,
    nms_thresh: float,
    min_size: float,
    box_coder: BoxCoder,
    nms: NMS,
) -> Proposals:
    """The best boxes of each image, few of them overlapping much (Faster R-CNN, section 3.3).

    The best are taken level by level before anything is decoded, which gives the same boxes as
    decoding all of some 268,000 anchors and costs a fiftieth.

    Args:
        anchors: ``[A, 4]``.
        objectness: logits, ``[N, A]``.
        pred_bbox_deltas: ``[N, A, 4]``.
        image_sizes: (height, width) without padding, ``[N, 2]``; boxes are clipped to it.
        level_sizes: anchors of each level; they add up to ``A``.
        pre_nms_top_n: candidates of each level.
        post_nms_top_n: proposals of each image, ``P``.
        score_thresh: the least objectness, in 0-1, that is kept.
        nms_thresh: IoU above which the worse of two boxes of a level is dropped.
        min_size: the least side in pixels that is kept.
    """
    candidates = top_k_of_levels(objectness, level_sizes, pre_nms_top_n)  # [N, K]
    scores = objectness.gather(1, candidates).sigmoid()  # [N, K]
    boxes = box_coder.decode(
        gather_entries(pred_bbox_deltas, candidates), F.embedding(candidates, anchors)
    )
    boxes = clip_boxes_to_image(boxes, image_sizes)  # [N, K, 4]
    keep = has_min_size(boxes, min_size) & (scores >= score_thresh)
    indices, counts = nms(
        boxes,
        scores.where(keep, -torch.inf),
        level_of_candidate(candidates, level_sizes, pre_nms_top_n),
        nms_thresh,
        post_nms_top_n,
        len(level_sizes),
    )  # [N, P], [N]
    valid = valid_entries(counts, indices.shape[1])  # [N, P]
    return Proposals(
        boxes=gather_entries(boxes, indices, valid),
        scores=gather_entries(scores, indices, valid),
        counts=counts,
        anchor_indices=gather_entries(candidates, indices, valid),
    )


def level_of_candidate(candidates: Tensor, level_sizes: Sequence[int], k: int) -> Tensor:
    """The level, from 0, of each of ``candidates [N, K]``: up to ``k`` a level, level by level."""
    levels = [candidates.new_full((min(k, size),), level) for level, size in enumerate(level_sizes)]
    return torch.cat(levels).expand_as(candidates)
