"""The five losses of Mask R-CNN as pure functions of predictions and targets.

K sampled boxes, C classes (background is class 0), M mask side. Each loss is a scalar; for empty
input it is a zero that still leads back to the predictions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Where smooth L1 turns from square to linear; Detectron's value, which torchvision keeps.
SMOOTH_L1_BETA = 1 / 9


def loss_objectness(objectness: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of anchors being objects (Faster R-CNN, Eq. 1, first term).

    Args:
        objectness: logits ``[K]`` of the sampled anchors.
        labels: float ``[K]``, 1 for an object and 0 for background.
    """
    if labels.numel() == 0:
        return objectness.sum() * 0
    return F.binary_cross_entropy_with_logits(objectness, labels)


def loss_rpn_box_reg(
    pred_bbox_deltas: Tensor, regression_targets: Tensor, num_sampled: int
) -> Tensor:
    """Smooth L1 over the positive anchors (Faster R-CNN, Eq. 1, second term).

    Args:
        pred_bbox_deltas: ``[K, 4]`` of the sampled positives.
        regression_targets: ``[K, 4]``, from the box coder.
        num_sampled: the divisor: all sampled anchors of the batch, negatives included.
    """
    return _smooth_l1_sum(pred_bbox_deltas, regression_targets) / max(num_sampled, 1)


def loss_classifier(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the sampled proposals' classes (Fast R-CNN, Eq. 1, first term).

    Args:
        class_logits: ``[K, C]``.
        labels: int64 ``[K]``.
    """
    if labels.numel() == 0:
        return class_logits.sum() * 0
    return F.cross_entropy(class_logits, labels)


def loss_box_reg(box_regression: Tensor, labels: Tensor, regression_targets: Tensor) -> Tensor:
    """Smooth L1 of the deltas for the true class, over objects only (Fast R-CNN, Eq. 1 to 3).

    Divided by K, background included, so that every sampled proposal weighs the same.

    Args:
        box_regression: ``[K, C * 4]``, four deltas for each class.
        labels: int64 ``[K]``.
        regression_targets: ``[K, 4]``, from the box coder; rows of background are not read.
    """
    objects = (labels > 0).nonzero().squeeze(1)
    deltas = box_regression.unflatten(1, (-1, 4))[objects, labels[objects]]  # [objects, 4]
    return _smooth_l1_sum(deltas, regression_targets[objects]) / max(labels.numel(), 1)


def loss_mask(mask_logits: Tensor, labels: Tensor, mask_targets: Tensor) -> Tensor:
    """Binary cross entropy of each pixel in the true class's channel (Mask R-CNN, section 3).

    Args:
        mask_logits: ``[K, C, M, M]`` of the sampled objects.
        labels: int64 ``[K]``, 1 and up.
        mask_targets: ``[K, M, M]`` in 0 to 1.
    """
    if mask_targets.numel() == 0:
        return mask_logits.sum() * 0
    rows = torch.arange(len(labels), device=labels.device)
    return F.binary_cross_entropy_with_logits(mask_logits[rows, labels], mask_targets)


def _smooth_l1_sum(deltas: Tensor, targets: Tensor) -> Tensor:
    return F.smooth_l1_loss(deltas, targets, beta=SMOOTH_L1_BETA, reduction="sum")
