"""What the RPN is trained on for these images: labels, matches and the sampled anchors.

Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_scratch.call_part import with_context
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.levels import anchor_levels
from maskrcnn_scratch.ops import max_iou
from maskrcnn_scratch.rpn.rpn import scores_and_losses
from maskrcnn_scratch.structures import StageOutputs, Target
from maskrcnn_scratch.targets.rpn_targets import assign_targets_to_anchors
from maskrcnn_scratch.targets.sampler import as_indices, with_generator
from maskrcnn_scratch.transform import resize_target

SEED = 0  # of the sampler: the same images give the same sample


@dataclass(frozen=True, eq=False)
class RPNTargets:
    """Targets of the anchors of one image (Faster R-CNN, section 3.1.2).

    Attributes:
        labels: float32 ``[A]``: 1 positive, 0 negative, ``IGNORE_LABEL`` ignored.
        matched_idxs: int64 ``[A]``: what the matcher gives, see ``targets.matcher``.
        best_iou: ``[A]``: highest IoU with an object; 0 without objects.
        best_object: int64 ``[A]``: the object of that IoU; meaningless without objects.
        positives, negatives: int64: the sampled anchors, which enter the losses.
        regression_targets: ``[A, 4]``; meaningful for positives only.
    """

    labels: Tensor
    matched_idxs: Tensor
    best_iou: Tensor
    best_object: Tensor
    positives: Tensor
    negatives: Tensor
    regression_targets: Tensor


def rpn_targets(
    model: GeneralizedRCNN,
    stages: StageOutputs,
    targets: Sequence[Target],
    original_image_sizes: Sequence[tuple[int, int]] | None = None,
    generator: torch.Generator | None = None,
) -> list[RPNTargets]:
    """What the RPN of ``model`` would be trained on, for each image of ``stages``.

    Args:
        targets: ground truth in the pixels of the original images, as for ``model.losses``.
        original_image_sizes: see ``resized_targets``.
        generator: draws the sample; by default a fresh one, as ``model.losses`` in eval mode has.
    """
    device = stages.anchors.device
    generator = generator or torch.Generator(device).manual_seed(SEED)
    resized = resized_targets(stages, targets, original_image_sizes)
    gt_boxes = [target["boxes"].to(stages.anchors) for target in resized]
    levels = anchor_levels(model, stages) or []
    matcher = with_context(model.rpn.proposal_matcher, level_sizes=[level.size for level in levels])
    labels, matched_gt_boxes = assign_targets_to_anchors(
        [stages.anchors] * len(resized), gt_boxes, matcher
    )
    sampler = with_generator(model.rpn.fg_bg_sampler, generator)
    sampler = with_context(sampler, **scores_and_losses(stages.objectness, labels))
    positives, negatives = as_indices(sampler(labels))
    found = []
    for n, boxes in enumerate(gt_boxes):
        best_iou = stages.anchors.new_zeros(len(stages.anchors))
        best_object = torch.zeros(len(stages.anchors), dtype=torch.int64, device=device)
        if len(boxes):
            best_iou, best_object, _ = max_iou(boxes, stages.anchors, False)
        found.append(
            RPNTargets(
                labels[n],
                matcher(boxes, stages.anchors),
                best_iou,
                best_object,
                positives[n][positives[n] >= 0],
                negatives[n][negatives[n] >= 0],
                model.rpn.box_coder.encode(matched_gt_boxes[n], stages.anchors),
            )
        )
    return found


def resized_targets(
    stages: StageOutputs,
    targets: Sequence[Target],
    original_image_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[Target]:
    """``targets`` in the pixels of the resized images, on the device of ``stages``.

    Args:
        targets: one per image, in the pixels of the original images.
        original_image_sizes: (height, width) of each original image; by default that of its
            masks.

    Raises:
        ValueError: another number of targets than of images, or a target without masks whose size
            is not given.
    """
    sizes = stages.images.image_sizes
    if len(targets) != len(sizes):
        raise ValueError(f"got {len(targets)} targets for {len(sizes)} images")
    resized = []
    for n, (target, size) in enumerate(zip(targets, sizes, strict=True)):
        if original_image_sizes is not None:
            original = original_image_sizes[n]
        elif "masks" in target:
            original = target["masks"].shape[-2], target["masks"].shape[-1]
        else:
            raise ValueError(f"target {n} has no masks: give original_image_sizes")
        tensors = {
            name: value.to(stages.anchors.device)
            for name, value in target.items()
            if isinstance(value, Tensor)
        }
        resized.append(resize_target(tensors, original, size))
    return resized
