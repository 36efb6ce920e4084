"""Focal loss in the RPN (Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3).

The loss takes all anchors in place of a balanced sample: those that are easy weigh little. So the
sampler takes everything, and both losses are divided by the number of positive anchors (4.1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.conventions import SMOOTH_L1_BETA


def all_anchors(
    labels: list[Tensor], generator: torch.Generator | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """An ``interfaces.Sampler``: every positive and every negative."""
    positives = [(of_image >= 1).nonzero().squeeze(1) for of_image in labels]
    return positives, [(of_image == 0).nonzero().squeeze(1) for of_image in labels]


def focal_loss(
    objectness: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """A replacement for ``losses.loss_objectness`` (Eq. 5)."""
    used = labels >= 0
    logits, is_object = objectness[used], labels[used]
    cross_entropy = F.binary_cross_entropy_with_logits(logits, is_object, reduction="none")
    weight = torch.where(is_object > 0, alpha, 1 - alpha)
    loss = weight * (1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy
    return loss.sum() / is_object.sum().clamp(min=1)


def box_loss(pred_bbox_deltas: Tensor, labels: Tensor, regression_targets: Tensor) -> Tensor:
    """``losses.loss_rpn_box_reg``, divided by the number of positives."""
    objects = labels > 0
    deltas, targets = pred_bbox_deltas[objects], regression_targets[objects]
    loss = F.smooth_l1_loss(deltas, targets, beta=SMOOTH_L1_BETA, reduction="sum")
    return loss / objects.sum().clamp(min=1)


def build(num_classes: int, **options: Any) -> MaskRCNN:
    model = small_maskrcnn(
        num_classes,
        rpn_fg_bg_sampler=all_anchors,
        rpn_loss_objectness=focal_loss,
        rpn_loss_box_reg=box_loss,
        **options,
    )
    # At the start each anchor is an object with a probability of 0.01 (section 4.1).
    torch.nn.init.constant_(model.rpn.head.cls_logits.bias, -4.6)
    return model
