"""Where libraries disagree about the same architecture, and which choice weights were trained with.

Most choices are fields of ``Conventions``. Four more are the same for every model here, and are
those of torchvision:

- ``SMOOTH_L1_BETA``: below.
- NMS per class (per level in the RPN): in images with few boxes, coordinates are shifted by a
  multiple of the class, so that boxes of different classes never overlap. The shift rounds the
  coordinates, which can decide where an IoU is close to the threshold. Up to
  ``ops.group_offset.offset_limit`` boxes this is done; torchvision and detectron2 share the limit.
- ``ops.fpn_levels.LEVEL_EPSILON``: added to a RoI's level before it is rounded down. detectron2
  adds 1e-8 inside the logarithm instead.
- ``ops.boxes.BBOX_XFORM_CLIP``: the upper limit of dw and dh when boxes are decoded; the same in
  torchvision and detectron2.

The order of classes and colours is settled when weights are converted (``weights.layouts``): the
background is class 0 and images are RGB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from maskrcnn_scratch.ops import paste_masks
from maskrcnn_scratch.weights.enums import (
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    WeightsEnum,
)

__all__ = ["SMOOTH_L1_BETA", "Conventions", "frozen_batch_norm_eps_of", "paste_masks_subpixel"]

# Smooth L1 is quadratic below this difference and linear above. Fast R-CNN (Eq. 3) has 1. Detectron
# and torchvision have 1 / 9. detectron2 has 0 by default, which is plain L1.
SMOOTH_L1_BETA = 1 / 9

# Published weights that were trained when torchvision's FrozenBatchNorm2d had no epsilon.
TRAINED_WITHOUT_EPS: tuple[WeightsEnum, ...] = (
    MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
)


@dataclass(frozen=True)
class Conventions:
    """The choices that the papers leave open. Weights need the choices they were trained with.

    ``MaskRCNN(..., conventions=Conventions.detectron2())`` builds its default parts with them; a
    part that is passed in keeps its own.

    The resize is torchvision's in either case (``GeneralizedRCNNTransform``): sides are rounded
    down and no antialiasing is used. detectron2 rounds to the nearest pixel and resizes with
    antialiasing.

    Attributes:
        image_mean, image_std: per channel, for pixels in 0-1.
        stride_in_1x1: whether a bottleneck has its stride in the first 1x1 convolution, as in the
            ResNet paper, or in the 3x3 convolution ("ResNet v1.5").
        frozen_batch_norm_eps: epsilon of ``FrozenBatchNorm2d``. None: the one that the weights were
            trained with (``frozen_batch_norm_eps_of``).
        round_anchors: whether the corners of an anchor, relative to its centre, are rounded to
            whole pixels (halves to even).
        ratios_fastest: order of the anchors of one location, and so of the RPN's outputs: all
            aspect ratios of the first size come first (True), or all sizes of the first ratio. The
            two differ only with several sizes per level.
        anchor_strides: pixels between neighbouring anchors, per level. None: the side of the padded
            image divided by the side of the feature map, rounded down. At the coarsest level this
            is less than the true stride where the map's side was rounded up.
        roi_aligned: whether RoIAlign takes the centre of the first pixel as 0.5 (True) or 0.
        sampling_ratio: RoIAlign's samples per bin along each side; 0 for as many as a bin has
            pixels.
        paste: puts mask probabilities into the image: ``paste(masks, boxes, size)``.
    """

    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    stride_in_1x1: bool = False
    frozen_batch_norm_eps: float | None = None
    round_anchors: bool = True
    ratios_fastest: bool = False
    anchor_strides: tuple[int, ...] | None = None
    roi_aligned: bool = False
    sampling_ratio: int = 2
    paste: Callable[[Tensor, Tensor, tuple[int, int]], Tensor] = paste_masks

    @classmethod
    def torchvision(cls) -> Conventions:
        """Those of torchvision's models, and the default."""
        return cls()

    @classmethod
    def detectron2(cls) -> Conventions:
        """Those of detectron2's R50-FPN models (``configs/Base-RCNN-FPN.yaml`` and defaults)."""
        return cls(
            image_mean=(123.675 / 255, 116.28 / 255, 103.53 / 255),
            image_std=(1 / 255, 1 / 255, 1 / 255),
            stride_in_1x1=True,
            round_anchors=False,
            ratios_fastest=True,
            anchor_strides=(4, 8, 16, 32, 64),
            roi_aligned=True,
            sampling_ratio=0,
            paste=paste_masks_subpixel,
        )

    def eps_for(self, weights: WeightsEnum | Path | None) -> float:
        """``frozen_batch_norm_eps``, or if None the one that ``weights`` were trained with."""
        if self.frozen_batch_norm_eps is not None:
            return self.frozen_batch_norm_eps
        return frozen_batch_norm_eps_of(weights)

    def with_channels(self, in_channels: int) -> Conventions:
        """The same for images with ``in_channels`` channels.

        As in ``weights.loading.inflate_stem``, the first three of three or more channels are RGB.
        Channels that are not RGB get the average mean and std.
        """

        def fit(values: tuple[float, ...]) -> tuple[float, ...]:
            kept = values if in_channels >= len(values) else ()
            return kept + (sum(values) / len(values),) * (in_channels - len(kept))

        return replace(self, image_mean=fit(self.image_mean), image_std=fit(self.image_std))


def frozen_batch_norm_eps_of(weights: WeightsEnum | Path | None) -> float:
    """Epsilon of ``FrozenBatchNorm2d`` that these weights were trained with.

    0.0 for torchvision's COCO_V1 weights, by name or as a file under any name: a file is recognised
    by its SHA-256. 1e-5 for all others. A converted copy is another file, and is not recognised:
    pass ``Conventions(frozen_batch_norm_eps=0.0)`` for it.
    """
    if isinstance(weights, Path):
        without_eps = any(member.is_content_of(weights) for member in TRAINED_WITHOUT_EPS)
    else:
        without_eps = weights in TRAINED_WITHOUT_EPS
    return 0.0 if without_eps else 1e-5


def paste_masks_subpixel(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Samples each mask at the centres of the image's pixels; boxes are not rounded.

    As detectron2's ``paste_masks_in_image`` before its threshold: the mask fades to zero from half
    a mask pixel inside its box to half a mask pixel outside.

    Args:
        masks: ``[D, 1, M, M]``, float.
        boxes: ``[D, 4]`` in image pixels; a box without area gives an empty mask.
        size: ``(height, width)`` of the image.

    Returns:
        ``[D, 1, H, W]`` in the masks' dtype.
    """
    side = masks.shape[-1]
    rows = _bilinear_weights(boxes[:, 1], boxes[:, 3], side, size[0]).to(masks.dtype)  # [D, H, M]
    columns = _bilinear_weights(boxes[:, 0], boxes[:, 2], side, size[1]).to(masks.dtype)
    return (rows @ masks[:, 0] @ columns.transpose(1, 2))[:, None]  # [D, 1, H, W]


def _bilinear_weights(low: Tensor, high: Tensor, side: int, size: int) -> Tensor:
    """Weight of each mask pixel ``[M]`` in each image pixel ``[size]``, ``[D, size, M]``."""
    centres = torch.arange(size, device=low.device) + 0.5
    position = (centres - low[:, None]) / (high - low)[:, None] * side - 0.5  # [D, size]
    distance = (position[..., None] - torch.arange(side, device=low.device)).abs()
    return (1 - distance).clamp(min=0).nan_to_num(nan=0.0)
