"""Box losses by overlap: GIoU (Rezatofighi et al. 2019), DIoU and CIoU (Zheng et al. 2020).

They compare decoded boxes in place of deltas, so they ask for the proposals and the box coder.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.interfaces import BoxCoder

EPS = 1e-7


def overlap_losses(predicted: Tensor, expected: Tensor) -> dict[str, Tensor]:
    """``giou``, ``diou`` and ``ciou`` of each pair of boxes, ``[R, 4]`` and ``[R, 4]``: ``[R]``."""
    low, high = torch.minimum(predicted, expected), torch.maximum(predicted, expected)
    sides = [(boxes[:, 2:] - boxes[:, :2]) for boxes in (predicted, expected)]  # width, height
    inside = (low[:, 2:] - high[:, :2]).clamp(min=0).prod(1)  # the intersection
    around = high[:, 2:] - low[:, :2]  # sides of the smallest box around both
    union = sides[0].prod(1) + sides[1].prod(1) - inside
    iou = inside / (union + EPS)
    giou = 1 - iou + 1 - union / (around.prod(1) + EPS)

    between_centers = (predicted + predicted.roll(2, 1) - expected - expected.roll(2, 1))[:, :2] / 2
    diou = 1 - iou + between_centers.square().sum(1) / (around.square().sum(1) + EPS)

    angles = [torch.atan(side[:, 0] / (side[:, 1] + EPS)) for side in sides]
    ratio = (4 / math.pi**2) * (angles[0] - angles[1]).square()
    weight = (ratio / (1 - iou + ratio + EPS)).detach()
    return {"giou": giou, "diou": diou, "ciou": diou + weight * ratio}


def box_loss(
    box_regression: Tensor,
    labels: Tensor,
    regression_targets: Tensor,
    proposals: Tensor,
    box_coder: BoxCoder,
    kind: str = "giou",
) -> Tensor:
    """A replacement for ``losses.loss_box_reg``, with the same divisor.

    ``kind`` is ``"giou"``, ``"diou"`` or ``"ciou"``. Zero, with a zero gradient, without objects.
    """
    objects = (labels > 0).nonzero().squeeze(1)  # [R]
    by_class = box_regression.unflatten(1, (box_regression.shape[1] // 4, 4))  # [B, C, 4]
    predicted = box_coder.decode(by_class[objects, labels[objects]], proposals[objects])
    expected = box_coder.decode(regression_targets[objects], proposals[objects])
    loss = overlap_losses(predicted, expected)[kind].sum()
    return loss / (labels >= 0).sum().clamp(min=1)


giou_loss = partial(box_loss, kind="giou")
diou_loss = partial(box_loss, kind="diou")
ciou_loss = partial(box_loss, kind="ciou")


def build(num_classes: int, kind: str = "giou", **options: Any) -> MaskRCNN:
    return small_maskrcnn(num_classes, box_loss_box_reg=partial(box_loss, kind=kind), **options)
