"""Proposals from the RPN's predictions: top-k, decode, clip, filter, NMS.

Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_scratch.call_part import decode_boxes, run_nms
from maskrcnn_scratch.interfaces import NMS, BoxCoder
from maskrcnn_scratch.ops import top_k_of_levels
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
    """The best boxes of each image after NMS (Faster R-CNN, section 3.3; FPN, section 4.1).

    Only the ``pre_nms_top_n`` anchors per level with the highest objectness are decoded. The result
    equals decoding all of them first. The predictions come without gradient
    (``RegionProposalNetwork.propose``).

    Args:
        anchors: ``[A, 4]``.
        objectness: logits, ``[N, A]``.
        pred_bbox_deltas: ``[N, A, 4]``.
        image_sizes: (height, width) without padding, ``[N, 2]``; boxes are clipped to it.
        level_sizes: anchors per level; they add up to ``A``.
        pre_nms_top_n: candidates per level.
        post_nms_top_n: proposals per image, ``P``.
        score_thresh: candidates with a lower objectness (in 0-1) are dropped.
        nms_thresh: IoU above which the lower-scoring one of two boxes of a level is suppressed.
        min_size: boxes with a shorter side, in pixels, are dropped.
        box_coder: decodes the deltas.
        nms: suppresses overlapping boxes of the same level.
    """
    candidates = top_k_of_levels(objectness, level_sizes, pre_nms_top_n)  # [N, K] in [0, A)
    scores = objectness.gather(1, candidates).sigmoid()  # [N, K]
    boxes, is_large = decode_boxes(
        box_coder, pred_bbox_deltas, candidates, anchors[None], candidates, image_sizes, min_size
    )  # [N, K, 4], clipped to the image; [N, K]
    keep = is_large & (scores >= score_thresh)  # [N, K]
    indices, counts, scores = run_nms(
        nms,
        boxes,
        scores.where(keep, -torch.inf),
        levels_of_candidates(candidates, level_sizes, pre_nms_top_n),  # the groups of NMS
        nms_thresh,
        post_nms_top_n,
        len(level_sizes),
    )  # [N, P] in [0, K), [N], [N, P]
    valid = valid_entries(counts, indices.shape[1])  # [N, P]
    return Proposals(
        boxes=gather_entries(boxes, indices, valid),
        scores=scores.where(valid, 0),
        counts=counts,
        anchor_indices=gather_entries(candidates, indices, valid),
    )


def levels_of_candidates(candidates: Tensor, level_sizes: Sequence[int], k: int) -> Tensor:
    """The level in ``[0, L)`` of each of ``candidates [N, K]``, which are ordered by level.

    ``k`` is the number of candidates per level; a smaller level has all its anchors.
    """
    levels = [candidates.new_full((min(k, size),), level) for level, size in enumerate(level_sizes)]
    return torch.cat(levels).expand_as(candidates)
