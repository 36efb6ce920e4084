"""What the box head and the mask head should say about each proposal.

P proposals, G ground-truth objects and S sampled proposals of one image; M mask side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn_scratch import interfaces
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.ops.roi_align import roi_align
from maskrcnn_scratch.structures import Target
from maskrcnn_scratch.training.matcher import Matcher, gather_matched_boxes

# Pixels of ground-truth masks held as float at a time: 64 MiB of float32.
MASK_PIXELS_AT_ONCE = 2**24


class TrainingSamples(NamedTuple):
    """The proposals that enter the losses; each field is a list with one tensor an image."""

    proposals: list[Tensor]  # [S, 4]
    matched_idxs: list[Tensor]  # int64 [S]: index of the ground truth; 0 for background
    labels: list[Tensor]  # int64 [S]: 0 is background
    regression_targets: list[Tensor]  # [S, 4]: only an object's row has a meaning


def select_training_samples(
    proposals: Sequence[Tensor],
    targets: Sequence[Target],
    matcher: interfaces.Matcher,
    sampler: interfaces.Sampler,
    box_coder: BoxCoder,
) -> TrainingSamples:
    """Adds the true boxes to the proposals, matches all of them and draws a sample.

    Args:
        proposals: ``[P, 4]`` for each image.
        targets: a dict for each image with ``boxes [G, 4]`` and ``labels`` int64 ``[G]``; with
            G = 0 all its proposals are background.
        matcher: see ``Matcher``.
        sampler: see ``BalancedPositiveNegativeSampler``.
        box_coder: encodes the regression targets.
    """
    candidates, matches, labels = [], [], []
    for proposals_in_image, target in zip(proposals, targets, strict=True):
        gt_boxes = target["boxes"].to(proposals_in_image.dtype)
        candidates_in_image = torch.cat((proposals_in_image, gt_boxes))  # [P + G, 4]
        matches_in_image = matcher(gt_boxes, candidates_in_image)
        candidates.append(candidates_in_image)
        matches.append(matches_in_image)
        labels.append(_labels_of_matches(target["labels"], matches_in_image))

    samples = TrainingSamples([], [], [], [])
    for image, (positive, negative) in enumerate(zip(*sampler(labels), strict=True)):
        sampled = torch.cat((positive, negative)).sort().values  # [S]
        boxes, matches_in_image = candidates[image][sampled], matches[image][sampled]
        gt_boxes = targets[image]["boxes"].to(boxes.dtype)
        matched_gt_boxes = gather_matched_boxes(gt_boxes, matches_in_image, boxes)
        samples.proposals.append(boxes)
        samples.matched_idxs.append(matches_in_image.clamp(min=0))
        samples.labels.append(labels[image][sampled])
        samples.regression_targets.append(box_coder.encode(matched_gt_boxes, boxes))
    return samples


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
    function, but masks are made float a few at a time, and only those in use.

    Args:
        gt_masks: ``[G, H, W]``, uint8, bool or float, 0 or 1.
        boxes: ``[K, 4]`` in the masks' pixels.
        matched_idxs: int64 ``[K]``: which mask.
        discretization_size: M.
        aligned: as of the RoIAlign that cuts out the mask head's features.

    Returns:
        ``[K, M, M]`` in ``boxes``' dtype, soft: 0 to 1. Empty for K = 0.
    """
    side = discretization_size
    mask_targets = boxes.new_empty((len(boxes), side, side))
    used, slot = matched_idxs.unique(return_inverse=True)  # [U], [K]
    masks_at_once = max(1, MASK_PIXELS_AT_ONCE // max(1, gt_masks[:1].numel()))
    for first in range(0, len(used), masks_at_once):
        masks = gt_masks[used[first : first + masks_at_once], None].to(boxes.dtype)  # [U', 1, H, W]
        here = ((slot >= first) & (slot < first + masks_at_once)).nonzero().squeeze(1)
        rois = torch.cat(((slot[here, None] - first).to(boxes.dtype), boxes[here]), dim=1)
        cut = roi_align(masks, rois, (side, side), spatial_scale=1.0, aligned=aligned)
        mask_targets[here] = cut[:, 0]
    return mask_targets
