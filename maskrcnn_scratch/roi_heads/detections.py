"""From the box head's predictions to detections: softmax, decode, clip, filter, NMS, top 100.

Letters: ``N`` images, ``P`` proposals, ``C`` classes with the background, ``K`` candidates an
image, ``D`` detection slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.host_sync import pack_entries
from maskrcnn_scratch.interfaces import NMS
from maskrcnn_scratch.ops.boxes import BoxCoder, clip_boxes_to_image, has_min_size
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
    """The best detections over all classes (Fast R-CNN, section 2.3).

    Each class of each proposal stands for itself: a proposal can become several detections. On the
    CPU the few of them that score enough are picked before anything is decoded; elsewhere that
    number is not known to the host, and all ``K = P * (C - 1)`` are candidates.

    Args:
        class_logits: ``[N, P, C]``; class 0 is the background.
        box_regression: offsets from the proposals for each class, ``[N, P, C, 4]``.
        image_sizes: (height, width) without padding, ``[N, 2]``; boxes are clipped to it.
        score_thresh: scores must exceed this.
        nms_thresh: IoU above which the worse of two boxes of a class is dropped.
        detections_per_img: detections of each image, ``D``.
        min_size: the least side in pixels that is kept.
    """
    _, num_proposals, num_classes = class_logits.shape
    scores = class_logits.softmax(dim=2)  # [N, P, C]
    filled = valid_entries(proposals.counts, num_proposals)[:, :, None]  # [N, P, 1]
    enough = filled & (scores[:, :, 1:] > score_thresh)  # [N, P, C - 1]
    candidates, wanted = pack_entries(enough.flatten(1))  # [N, K] each
    labels = candidates % (num_classes - 1) + 1
    parents = candidates // (num_classes - 1)  # [N, K] into [0, P)
    slots = parents * num_classes + labels  # [N, K] into [0, P * C)

    deltas = gather_entries(box_regression.flatten(1, 2), slots)
    boxes = box_coder.decode(deltas, gather_entries(proposals.boxes, parents))
    boxes = clip_boxes_to_image(boxes, image_sizes)  # [N, K, 4]
    scores = scores.flatten(1).gather(1, slots)
    scores = scores.where(wanted & has_min_size(boxes, min_size), -torch.inf)
    indices, counts = nms(boxes, scores, labels, nms_thresh, detections_per_img, num_classes)
    valid = valid_entries(counts, indices.shape[1])  # [N, D]
    return Detections(
        boxes=gather_entries(boxes, indices, valid),
        labels=gather_entries(labels, indices, valid),
        scores=gather_entries(scores, indices, valid),
        counts=counts,
        proposal_indices=gather_entries(parents, indices, valid),
    )
