"""The five losses of Mask R-CNN as pure functions of predictions and targets.

K sampled boxes, C classes (background is class 0), M mask side. A label of 1 or more is an object,
0 is background and -1 a place that no box was drawn for, which does not count. Each loss is a
scalar; where nothing counts it is a zero that still leads back to the predictions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_scratch.host_sync import entries_to_compute

# Where smooth L1 turns from square to linear; Detectron's value, which torchvision keeps.
SMOOTH_L1_BETA = 1 / 9


def loss_objectness(objectness: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of anchors being objects (Faster R-CNN, Eq. 1, first term).

    Args:
        objectness: logits ``[K]`` of the sampled anchors.
        labels: float ``[K]``.
    """
    return _mean_binary_cross_entropy(objectness, labels, labels >= 0)


def loss_rpn_box_reg(
    pred_bbox_deltas: Tensor, labels: Tensor, regression_targets: Tensor
) -> Tensor:
    """Smooth L1 over the objects among the anchors (Faster R-CNN, Eq. 1, second term).

    Divided by the number of all sampled anchors of the batch, background included.

    Args:
        pred_bbox_deltas: ``[K, 4]`` of the sampled anchors.
        labels: float ``[K]``.
        regression_targets: ``[K, 4]``, from the box coder; only rows of objects count.
    """
    rows = entries_to_compute(labels > 0)  # [R]
    return _smooth_l1_sum(
        pred_bbox_deltas[rows], regression_targets[rows], labels[rows] > 0
    ) / _number(labels >= 0)


def loss_classifier(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the sampled proposals' classes (Fast R-CNN, Eq. 1, first term).

    Args:
        class_logits: ``[K, C]``.
        labels: int64 ``[K]``.
    """
    total = F.cross_entropy(class_logits, labels, ignore_index=-1, reduction="sum")
    return total / _number(labels >= 0)


def loss_box_reg(box_regression: Tensor, labels: Tensor, regression_targets: Tensor) -> Tensor:
    """Smooth L1 of the deltas for the true class, over objects only (Fast R-CNN, Eq. 1 to 3).

    Divided by the number of all sampled proposals, background included, so that each weighs the
    same.

    Args:
        box_regression: ``[K, C * 4]``, four deltas for each class.
        labels: int64 ``[K]``.
        regression_targets: ``[K, 4]``, from the box coder; only rows of objects count.
    """
    rows = entries_to_compute(labels > 0)  # [R]
    own = labels[rows]
    deltas = box_regression.unflatten(1, (-1, 4))[rows, own.clamp(min=0)]  # [R, 4]
    return _smooth_l1_sum(deltas, regression_targets[rows], own > 0) / _number(labels >= 0)


def loss_mask(mask_logits: Tensor, labels: Tensor, mask_targets: Tensor) -> Tensor:
    """Binary cross entropy of each pixel in the true class's channel (Mask R-CNN, section 3).

    Args:
        mask_logits: ``[K, C, M, M]`` of the sampled objects.
        labels: int64 ``[K]``, never background.
        mask_targets: ``[K, M, M]`` in 0 to 1.
    """
    rows = torch.arange(labels.shape[0], device=labels.device)
    own = mask_logits[rows, labels.clamp(min=0)]  # [K, M, M]
    return _mean_binary_cross_entropy(own, mask_targets, labels >= 0)


def _number(counted: Tensor) -> Tensor:
    """How many of ``counted`` are true, as a divisor: 1 where none is."""
    return counted.sum().clamp(min=1)


def _mean_binary_cross_entropy(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Over the rows ``[K, ...]`` that are ``counted [K]``."""
    if logits.numel() == 0:
        return logits.sum() * 0
    weight = counted.to(logits.dtype).reshape(-1, *[1] * (logits.dim() - 1))
    mean = F.binary_cross_entropy_with_logits(logits, targets, weight)
    # Exactly 1 where all count: then value and gradient have the bits of the plain mean.
    return mean * (len(counted) / _number(counted)).to(mean.dtype)


def _smooth_l1_sum(deltas: Tensor, targets: Tensor, is_object: Tensor) -> Tensor:
    """Over the rows ``[R, 4]`` that are objects, ``[R]``; the targets of others may be infinite."""
    other = ~is_object[:, None]
    deltas, targets = deltas.masked_fill(other, 0), targets.masked_fill(other, 0)
    return F.smooth_l1_loss(deltas, targets, beta=SMOOTH_L1_BETA, reduction="sum")
