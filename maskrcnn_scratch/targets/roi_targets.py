"""Targets of the box head and the mask head (Fast R-CNN, section 2.3; Mask R-CNN, section 3).

Shapes: see ``structures``; here ``B`` boxes are sampled per image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_scratch import interfaces
from maskrcnn_scratch.call_part import asks_for, with_context
from maskrcnn_scratch.host_sync import entries_to_compute
from maskrcnn_scratch.ops.roi_align import roi_align
from maskrcnn_scratch.structures import IGNORE_LABEL, Proposals, Target
from maskrcnn_scratch.targets.matcher import Matcher, gather_matched_boxes
from maskrcnn_scratch.targets.sampler import as_indices, concatenate_samples

# Pixels of ground-truth masks held as float at a time: 64 MiB of float32.
MASK_PIXELS_AT_ONCE = 2**24


class TrainingSamples(NamedTuple):
    """The proposals that enter the losses; each field is a list with a tensor per image."""

    proposals: list[Tensor]  # [B, 4]
    matched_idxs: list[Tensor]  # int64 [B]: index of the ground truth; 0 for background
    labels: list[Tensor]  # int64 [B]
    regression_targets: list[Tensor]  # [B, 4], meaningful for objects only
    objects: list[Tensor]  # int64 in [0, B): the sampled objects, which have a mask target

    def of_objects(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Proposals and matched_idxs of the objects, per image, and the labels ``[R]`` of all.

        The label of a box that is no object is ``IGNORE_LABEL`` (see ``indices_of_objects``).
        """
        boxes, matched_idxs, labels = (
            [in_image[objects] for in_image, objects in zip(field, self.objects, strict=True)]
            for field in (self.proposals, self.matched_idxs, self.labels)
        )
        all_labels = torch.cat(labels)
        return boxes, matched_idxs, all_labels.masked_fill(all_labels == 0, IGNORE_LABEL)


def select_training_samples(
    proposals: Proposals,
    targets: Sequence[Target],
    matcher: interfaces.Matcher,
    sampler: interfaces.Sampler,
    box_coder: interfaces.BoxCoder,
    class_logits_of: Callable[[list[Tensor]], Tensor] | None = None,
) -> TrainingSamples:
    """Adds the ground-truth boxes to the proposals, matches them all and samples.

    Args:
        proposals: of which only ``boxes`` and ``counts`` are used.
        targets: a dict per image with ``boxes [G, 4]`` and ``labels`` int64 ``[G]``. With ``G = 0``
            all proposals of the image are background.
        matcher: see ``Matcher``.
        sampler: see ``BalancedPositiveNegativeSampler``.
        box_coder: encodes the regression targets.
        class_logits_of: from boxes ``[P + G, 4]`` per image to class logits ``[R, C]``; called
            without gradient if the sampler asks for scores or losses.
    """
    candidates, matched_idxs, labels = [], [], []
    for boxes, count, target in zip(proposals.boxes, proposals.counts, targets, strict=True):
        gt_boxes = target["boxes"].to(boxes.dtype)
        with_gt, valid = append_gt_boxes(boxes, count, gt_boxes)  # [P + G, 4], [P + G]
        matched = matcher(gt_boxes, with_gt)
        candidates.append(with_gt)
        matched_idxs.append(matched)
        labels.append(labels_of_matches(target["labels"], matched).where(valid, IGNORE_LABEL))

    if class_logits_of is not None and (asks_for(sampler, "scores") or asks_for(sampler, "losses")):
        with torch.no_grad():
            sampler = with_context(
                sampler, **scores_and_losses(class_logits_of(candidates), labels)
            )
    samples = TrainingSamples([], [], [], [], [])
    for n, (positive, negative) in enumerate(zip(*as_indices(sampler(labels)), strict=True)):
        sampled, sampled_labels = concatenate_samples([positive], [negative], [labels[n]])  # [B]
        order = sampled.argsort(stable=True)  # as in torchvision
        sampled, sampled_labels = sampled[order], sampled_labels[order]
        boxes, matched = candidates[n][sampled], matched_idxs[n][sampled]
        matched_gt_boxes = gather_matched_boxes(targets[n]["boxes"].to(boxes.dtype), matched, boxes)
        samples.proposals.append(boxes)
        samples.matched_idxs.append(matched.clamp(min=0))
        samples.labels.append(sampled_labels)
        samples.regression_targets.append(box_coder.encode(matched_gt_boxes, boxes))
        samples.objects.append(indices_of_objects(sampled_labels, len(positive)))
    return samples


def scores_and_losses(class_logits: Tensor, labels: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """What a sampler may ask for: see ``interfaces.Sampler``.

    Args:
        class_logits: ``[R, C]`` of the boxes of all images.
        labels: int64 ``[P + G]`` per image; they add up to ``R``.
    """
    numbers = [len(labels_in_image) for labels_in_image in labels]
    cross_entropy = F.cross_entropy(
        class_logits, torch.cat(list(labels)), ignore_index=IGNORE_LABEL, reduction="none"
    )  # [R]
    return {
        "scores": list(class_logits.softmax(dim=1).split(numbers)),
        "losses": list(cross_entropy.split(numbers)),
    }


def append_gt_boxes(boxes: Tensor, count: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Puts ``gt_boxes [G, 4]`` after the first ``count`` of ``boxes [P, 4]``, before the padding.

    Returns:
        ``[P + G, 4]``, and which of them are valid, bool ``[P + G]``. No host synchronisation.
    """
    num_gt = len(gt_boxes)
    index = torch.arange(len(boxes) + num_gt, device=boxes.device)
    padded = torch.cat((boxes, boxes.new_zeros((num_gt, 4))))  # [P + G, 4]
    return padded.index_copy(0, index[:num_gt] + count, gt_boxes), index < count + num_gt


def labels_of_matches(gt_labels: Tensor, matched_idxs: Tensor) -> Tensor:
    """Class of each matched object, 0 for background, ``IGNORE_LABEL`` between the thresholds."""
    if len(gt_labels) == 0:
        return torch.zeros_like(matched_idxs)
    labels = gt_labels[matched_idxs.clamp(min=0)]
    labels = labels.masked_fill(matched_idxs == Matcher.BELOW_LOW_THRESHOLD, 0)
    return labels.masked_fill(matched_idxs == Matcher.BETWEEN_THRESHOLDS, IGNORE_LABEL)


def indices_of_objects(labels: Tensor, count: int) -> Tensor:
    """Indices of the objects among ``labels [B]``, ascending.

    ``count`` is how many positives the sampler returned. A sampler of fixed size may have found
    fewer objects; the indices of other boxes then fill up to ``count``, so that the size is known
    without host synchronisation. Their labels keep them out of the losses.
    """
    return (labels < 1).argsort(stable=True)[:count]


def has_mask_target(targets: Sequence[Target], matched_idxs: Sequence[Tensor]) -> Tensor:
    """Whether each sampled object has a mask in the ground truth, bool ``[R]`` of all images.

    Args:
        targets: ``has_mask`` bool ``[G]`` of each; without it every object has a mask.
        matched_idxs: int64 per image: the object that each box was matched with.
    """
    return torch.cat(
        [
            target["has_mask"][matched]
            if "has_mask" in target and len(target["has_mask"]) > 0
            else torch.ones_like(matched, dtype=torch.bool)
            for target, matched in zip(targets, matched_idxs, strict=True)
        ]
    )


def project_masks_on_boxes(
    gt_masks: Tensor,
    boxes: Tensor,
    matched_idxs: Tensor,
    discretization_size: int,
    aligned: bool = False,
) -> Tensor:
    """Mask targets: each object's mask, cropped to a box and resized to M x M (Mask R-CNN, 3.1).

    RoIAlign of the masks with one sample per pixel of a bin. Equal to torchvision's function of
    this name; here only a few masks at a time are converted to float.

    Args:
        gt_masks: ``[G, H, W]``, uint8, bool or float, 0 or 1.
        boxes: ``[B, 4]`` in the masks' pixels.
        matched_idxs: int64 ``[B]``: index of each box's mask.
        discretization_size: ``M``.
        aligned: as in the RoIAlign that pools the mask head's features.

    Returns:
        ``[B, M, M]`` in ``boxes``' dtype, soft: 0 to 1. Zeros where there is no such mask.
    """
    side = discretization_size
    mask_targets = boxes.new_zeros((len(boxes), side, side))
    masks_at_once = max(1, MASK_PIXELS_AT_ONCE // max(1, gt_masks[:1].numel()))
    for first in range(0, len(gt_masks), masks_at_once):
        masks = gt_masks[first : first + masks_at_once, None].to(boxes.dtype)  # [G', 1, H, W]
        here = (matched_idxs >= first) & (matched_idxs < first + len(masks))  # [B]
        rows = entries_to_compute(here)  # [B'], all B where values are not known
        # Boxes of other masks, where included, shrink to a point, which costs little.
        rois = torch.cat(((matched_idxs[rows, None] - first).to(boxes.dtype), boxes[rows]), dim=1)
        other = ~here[rows]
        rois = rois.masked_fill(other[:, None], 0)
        cut = roi_align(masks, rois, (side, side), spatial_scale=1.0, aligned=aligned)[:, 0]
        mask_targets = mask_targets.index_add(0, rows, cut.masked_fill(other[:, None, None], 0))
    return mask_targets
