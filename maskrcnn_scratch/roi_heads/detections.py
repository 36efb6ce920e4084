"""Detections from the box head's predictions: softmax, decode, clip, filter, NMS.

Shapes: see ``structures``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.call_part import decode_boxes, run_nms
from maskrcnn_scratch.host_sync import pack_entries
from maskrcnn_scratch.interfaces import NMS, BoxCoder
from maskrcnn_scratch.structures import Detections, Proposals, gather_entries, valid_entries


def select_detections(
    class_logits: Tensor,
    box_regression: Tensor,
    proposals: Proposals,
    image_sizes: Tensor,
    *,
    score_thresh: float,
    nms_thresh: float,
    detections_per_img: int,
    min_size: float,
    box_coder: BoxCoder,
    nms: NMS,
) -> Detections:
    """The best detections over all classes, after NMS per class (Fast R-CNN, section 3).

    Each pair of a proposal and an object class is a candidate, so that a proposal can give several
    detections. ``K`` counts the candidates above the threshold on the CPU, and all ``P * (C - 1)``
    pairs elsewhere (``host_sync``). Without proposals, ``P = 0``, there are no detections either.

    Args:
        class_logits: ``[N, P, C]``; class 0 is the background.
        box_regression: deltas relative to the proposals for each class, ``[N, P, C, 4]``, or
            ``[N, P, 1, 4]`` if they are class-agnostic.
        proposals: from the RPN.
        image_sizes: (height, width) without padding, ``[N, 2]``; boxes are clipped to it.
        score_thresh: candidates whose score does not exceed this are dropped.
        nms_thresh: IoU above which the lower-scoring one of two boxes of a class is suppressed.
        detections_per_img: the most detections per image, ``D``.
        min_size: boxes with a shorter side, in pixels, are dropped.
        box_coder: decodes the deltas.
        nms: suppresses overlapping boxes of the same class.
    """
    _, num_proposals, num_classes = class_logits.shape
    scores = class_logits.softmax(dim=2)  # [N, P, C]
    if num_proposals == 0:
        return Detections(
            boxes=proposals.boxes,
            labels=torch.zeros_like(proposals.anchor_indices),
            scores=proposals.scores,
            counts=proposals.counts,
            proposal_indices=proposals.anchor_indices,
        )
    is_proposal = valid_entries(proposals.counts, num_proposals)[:, :, None]  # [N, P, 1]
    above = is_proposal & (scores[:, :, 1:] > score_thresh)  # [N, P, C - 1]
    candidates, is_candidate = pack_entries(above.flatten(1))  # [N, K] in [0, P * (C - 1)), [N, K]
    labels = candidates % (num_classes - 1) + 1  # [N, K]
    proposal_indices = candidates // (num_classes - 1)  # [N, K] in [0, P)
    pairs = proposal_indices * num_classes + labels  # [N, K] in [0, P * C)

    of_deltas = pairs if box_regression.shape[2] > 1 else proposal_indices  # [N, K]
    boxes, is_large = decode_boxes(
        box_coder,
        box_regression.flatten(1, 2),
        of_deltas,
        proposals.boxes,
        proposal_indices,
        image_sizes,
        min_size,
    )  # [N, K, 4], clipped to the image; [N, K]
    scores = scores.flatten(1).gather(1, pairs)  # [N, K]
    scores = scores.where(is_candidate & is_large, -torch.inf)
    # The labels are the groups of NMS: boxes of different classes do not suppress each other.
    indices, counts, scores = run_nms(
        nms, boxes, scores, labels, nms_thresh, detections_per_img, num_classes
    )  # [N, D] in [0, K), [N], [N, D]
    valid = valid_entries(counts, indices.shape[1])  # [N, D]
    return Detections(
        boxes=gather_entries(boxes, indices, valid),
        labels=gather_entries(labels, indices, valid),
        scores=scores.where(valid, 0),
        counts=counts,
        proposal_indices=gather_entries(proposal_indices, indices, valid),
    )
