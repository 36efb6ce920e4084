"""The five losses of Mask R-CNN as pure functions of predictions and targets.

Shapes: see ``structures``; here ``B`` counts the sampled boxes of the whole batch. Labels: 1 or
more is an object, 0 is background, ``IGNORE_LABEL`` takes no part. Each loss is a scalar; where no
box takes part it is zero, with a zero gradient for the predictions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_scratch.conventions import SMOOTH_L1_BETA
from maskrcnn_scratch.host_sync import entries_to_compute
from maskrcnn_scratch.structures import IGNORE_LABEL, of_classes


def loss_objectness(objectness: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of objectness, over the sampled anchors (Faster R-CNN, Eq. 1, L_cls).

    Args:
        objectness: logits ``[B]``.
        labels: float ``[B]``.
    """
    return _mean_binary_cross_entropy(objectness, labels, labels != IGNORE_LABEL)


def loss_rpn_box_reg(
    pred_bbox_deltas: Tensor, labels: Tensor, regression_targets: Tensor
) -> Tensor:
    """Smooth L1 over the sampled anchors that are objects (Faster R-CNN, Eq. 1, L_reg).

    Divided by the number of all sampled anchors, background included, as in torchvision. (The paper
    divides by the number of anchor locations and weights the term by 10.)

    Args:
        pred_bbox_deltas: ``[B, 4]``.
        labels: float ``[B]``.
        regression_targets: ``[B, 4]``, from the box coder; only those of objects are used.
    """
    objects = entries_to_compute(labels > 0)  # [R]
    return _smooth_l1_sum(
        pred_bbox_deltas[objects], regression_targets[objects], labels[objects] > 0
    ) / _count(labels != IGNORE_LABEL)


def loss_classifier(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the classes, over the sampled proposals (Fast R-CNN, Eq. 1, L_cls).

    Args:
        class_logits: ``[B, C]``.
        labels: int64 ``[B]``.
    """
    total = F.cross_entropy(class_logits, labels, ignore_index=IGNORE_LABEL, reduction="sum")
    return total / _count(labels != IGNORE_LABEL)


def loss_box_reg(box_regression: Tensor, labels: Tensor, regression_targets: Tensor) -> Tensor:
    """Smooth L1 of the true class's deltas, over objects only (Fast R-CNN, Eq. 1 to 3, L_loc).

    Divided by the number of all sampled proposals, background included, so that every sampled
    object has the same weight however many there are.

    Args:
        box_regression: ``[B, C * 4]``, four deltas for each class; ``[B, 4]`` if class-agnostic.
        labels: int64 ``[B]``.
        regression_targets: ``[B, 4]``, from the box coder; only those of objects are used.
    """
    objects = entries_to_compute(labels > 0)  # [R]
    true_class = labels[objects]
    by_class = box_regression.unflatten(1, (box_regression.shape[1] // 4, 4))  # [B, C, 4]
    deltas = of_classes(by_class, objects, true_class.clamp(min=0))  # [R, 4]
    return _smooth_l1_sum(deltas, regression_targets[objects], true_class > 0) / _count(
        labels != IGNORE_LABEL
    )


def loss_mask(mask_logits: Tensor, labels: Tensor, mask_targets: Tensor) -> Tensor:
    """Mean binary cross entropy per pixel of the true class's mask (Mask R-CNN, section 3, L_mask).

    The masks of other classes do not take part, so that classes do not compete.

    Args:
        mask_logits: ``[B, C, M, M]`` of the sampled objects; ``[B, 1, M, M]`` if class-agnostic.
        labels: int64 ``[B]``, never background.
        mask_targets: ``[B, M, M]`` in 0 to 1.
    """
    rows = torch.arange(labels.shape[0], device=labels.device)
    of_true_class = of_classes(mask_logits, rows, labels.clamp(min=0))  # [B, M, M]
    return _mean_binary_cross_entropy(of_true_class, mask_targets, labels != IGNORE_LABEL)


def _count(takes_part: Tensor) -> Tensor:
    """How many of ``takes_part`` are true, as a divisor: 1 where none is."""
    return takes_part.sum().clamp(min=1)


def _mean_binary_cross_entropy(logits: Tensor, targets: Tensor, takes_part: Tensor) -> Tensor:
    """Over the rows ``[B, ...]`` for which ``takes_part [B]`` is true."""
    if logits.numel() == 0:
        return logits.sum() * 0
    weight = takes_part.to(logits.dtype).reshape(-1, *[1] * (logits.dim() - 1))
    mean = F.binary_cross_entropy_with_logits(logits, targets, weight)
    # The factor is exactly 1 where all take part: the result then equals the plain mean bit by bit.
    # Not len(...) / count, which is count.reciprocal() * len(...) in PyTorch: 1 / 41 * 41 < 1.
    count = _count(takes_part).to(mean.dtype)
    return mean * (torch.full_like(count, len(takes_part)) / count)


def _smooth_l1_sum(deltas: Tensor, targets: Tensor, is_object: Tensor) -> Tensor:
    """Over the rows ``[R, 4]`` that are objects, ``[R]``; the targets of others may be infinite."""
    other = ~is_object[:, None]
    deltas, targets = deltas.masked_fill(other, 0), targets.masked_fill(other, 0)
    return F.smooth_l1_loss(deltas, targets, beta=SMOOTH_L1_BETA, reduction="sum")
