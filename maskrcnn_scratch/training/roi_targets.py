"""What the box head and the mask head should say about each proposal.

P proposal slots, G ground-truth objects and S sampled proposals of one image, O of which may be
objects; M mask side. A label is a class, 0 for background, or -1 for a place without a proposal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn_scratch import interfaces
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.ops.roi_align import roi_align
from maskrcnn_scratch.structures import Proposals, Target, slots_to_compute
from maskrcnn_scratch.training.matcher import Matcher, gather_matched_boxes

# Pixels of ground-truth masks held as float at a time: 64 MiB of float32.
MASK_PIXELS_AT_ONCE = 2**24


class TrainingSamples(NamedTuple):
    """The proposals that enter the losses; each field is a list with one tensor an image."""

    proposals: list[Tensor]  # [S, 4]
    matched_idxs: list[Tensor]  # int64 [S]: index of the ground truth; 0 for background
    labels: list[Tensor]  # int64 [S]
    regression_targets: list[Tensor]  # [S, 4]: only an object's row has a meaning
    objects: list[Tensor]  # int64 [O] into [0, S): all objects, then what fills the places


def select_training_samples(
    proposals: Proposals,
    targets: Sequence[Target],
    matcher: interfaces.Matcher,
    sampler: interfaces.Sampler,
    box_coder: BoxCoder,
) -> TrainingSamples:
    """Adds the true boxes to the proposals, matches all of them and draws a sample.

    Args:
        proposals: of which only the boxes and their number are looked at.
        targets: a dict for each image with ``boxes [G, 4]`` and ``labels`` int64 ``[G]``; with
            G = 0 all its proposals are background.
        matcher: see ``Matcher``.
        sampler: see ``BalancedPositiveNegativeSampler``.
        box_coder: encodes the regression targets.
    """
    candidates, matches, labels = [], [], []
    for boxes, number, target in zip(proposals.boxes, proposals.counts, targets, strict=True):
        gt_boxes = target["boxes"].to(boxes.dtype)
        candidates_in_image, filled = _append(boxes, number, gt_boxes)  # [P + G, 4], [P + G]
        matches_in_image = matcher(gt_boxes, candidates_in_image)
        labels_in_image = _labels_of_matches(target["labels"], matches_in_image)
        candidates.append(candidates_in_image)
        matches.append(matches_in_image)
        labels.append(labels_in_image.masked_fill(~filled, -1))

    samples = TrainingSamples([], [], [], [], [])
    for image, (positive, negative) in enumerate(zip(*sampler(labels), strict=True)):
        sampled = torch.cat((positive, negative)).sort().values  # [S]
        drawn, sampled = sampled >= 0, sampled.clamp(min=0)
        boxes, matches_in_image = candidates[image][sampled], matches[image][sampled]
        labels_in_image = labels[image][sampled].masked_fill(~drawn, -1)
        gt_boxes = targets[image]["boxes"].to(boxes.dtype)
        matched_gt_boxes = gather_matched_boxes(gt_boxes, matches_in_image, boxes)
        samples.proposals.append(boxes)
        samples.matched_idxs.append(matches_in_image.clamp(min=0))
        samples.labels.append(labels_in_image)
        samples.regression_targets.append(box_coder.encode(matched_gt_boxes, boxes))
        objects_first = (labels_in_image < 1).argsort(stable=True)  # [S]
        samples.objects.append(objects_first[: len(positive)])
    return samples


def _append(boxes: Tensor, number: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """``gt_boxes [G, 4]`` after the first ``number`` of ``boxes [P, 4]``; and which slots hold one.

    Nothing waits to learn the number: the slots left over, now last, stay.
    """
    num_gt = len(gt_boxes)
    slots = torch.arange(len(boxes) + num_gt, device=boxes.device)
    padded = torch.cat((boxes, boxes.new_zeros((num_gt, 4))))  # [P + G, 4]
    return padded.index_copy(0, slots[:num_gt] + number, gt_boxes), slots < number + num_gt


def _labels_of_matches(gt_labels: Tensor, matches: Tensor) -> Tensor:
    """int64 ``[P]``: class of the matched object, 0 for background, -1 between the thresholds."""
    if len(gt_labels) == 0:
        return torch.zeros_like(matches)
    labels = gt_labels[matches.clamp(min=0)].masked_fill(matches == Matcher.BELOW_LOW_THRESHOLD, 0)
    return labels.masked_fill(matches == Matcher.BETWEEN_THRESHOLDS, -1)


def project_masks_on_boxes(
    gt_masks: Tensor,
    boxes: Tensor,
    matched_idxs: Tensor,
    discretization_size: int,
    aligned: bool = False,
) -> Tensor:
    """The part of its object's mask that each box shows, as the mask head sees it.

    RoIAlign of the masks with as many samples a bin as it has pixels. Equal to torchvision's
    function, but masks are made float a few at a time.

    Args:
        gt_masks: ``[G, H, W]``, uint8, bool or float, 0 or 1.
        boxes: ``[K, 4]`` in the masks' pixels.
        matched_idxs: int64 ``[K]``: which mask.
        discretization_size: M.
        aligned: as of the RoIAlign that cuts out the mask head's features.

    Returns:
        ``[K, M, M]`` in ``boxes``' dtype, soft: 0 to 1. Zeros where there is no such mask.
    """
    side = discretization_size
    mask_targets = boxes.new_zeros((len(boxes), side, side))
    masks_at_once = max(1, MASK_PIXELS_AT_ONCE // max(1, gt_masks[:1].numel()))
    for first in range(0, len(gt_masks), masks_at_once):
        masks = gt_masks[first : first + masks_at_once, None].to(boxes.dtype)  # [G', 1, H, W]
        here = (matched_idxs >= first) & (matched_idxs < first + len(masks))  # [K]
        rows = slots_to_compute(here)  # [K']
        # Boxes of other masks, where they come along, shrink to a point and take little time.
        rois = torch.cat(((matched_idxs[rows, None] - first).to(boxes.dtype), boxes[rows]), dim=1)
        other = ~here[rows]
        rois = rois.masked_fill(other[:, None], 0)
        cut = roi_align(masks, rois, (side, side), spatial_scale=1.0, aligned=aligned)[:, 0]
        mask_targets = mask_targets.index_add(0, rows, cut.masked_fill(other[:, None, None], 0))
    return mask_targets
