"""Where libraries disagree about the same architecture, in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskrcnn_scratch.ops import paste_masks

__all__ = ["Conventions", "paste_masks_subpixel"]


@dataclass(frozen=True)
class Conventions:
    """The choices that the papers leave open. Weights work with the ones they were trained with.

    ``MaskRCNN(..., conventions=Conventions.detectron2())`` builds its default parts by them; a part
    that is handed in keeps its own. The order of the classes and of the colours is settled when
    weights are converted (``weights.layouts``): the background is class 0 and images are RGB.

    The resize before all this is ``GeneralizedRCNNTransform``'s either way: sides are rounded down
    and pixels are not averaged. (detectron2 rounds to nearest, and averages where it shrinks.)

    Attributes:
        image_mean, image_std: of each channel, for pixels in 0-1.
        stride_in_1x1: a bottleneck halves the resolution in its first convolution, as in the ResNet
            paper, rather than in the 3x3 one.
        round_anchors: whether the sides of anchors are whole pixels.
        anchor_strides: pixels between anchors, level by level; None for the padded image's side
            divided by the feature map's, rounded down, which is less than the true stride at the
            coarsest level wherever that map's side was rounded up.
        roi_aligned: whether RoIAlign takes the centre of the first pixel for 0.5 rather than 0.
        sampling_ratio: RoIAlign's samples along each side of a bin; 0 for one for each pixel.
        paste: puts soft masks into the image: ``paste(masks, boxes, size)``.
    """

    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    stride_in_1x1: bool = False
    round_anchors: bool = True
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
            anchor_strides=(4, 8, 16, 32, 64),
            roi_aligned=True,
            sampling_ratio=0,
            paste=paste_masks_subpixel,
        )

    def with_channels(self, in_channels: int) -> Conventions:
        """For images of another number of channels: those that are not RGB get the average.

        It goes with ``weights.loading.inflate_stem``: the first three of four or more are RGB, one
        or two are none of them.
        """

        def fit(values: tuple[float, ...]) -> tuple[float, ...]:
            kept = values if in_channels >= len(values) else ()
            return kept + (sum(values) / len(values),) * (in_channels - len(kept))

        return replace(self, image_mean=fit(self.image_mean), image_std=fit(self.image_std))


def paste_masks_subpixel(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Samples each mask at the centres of the image's pixels; boxes are not rounded.

    As detectron2's ``paste_masks_in_image`` before its threshold: the mask fades to zero from half
    a mask pixel inside of its box to half a mask pixel outside.

    Args:
        masks: ``[N, 1, M, M]``, float.
        boxes: ``[N, 4]`` in image pixels; one without extent gives an empty mask.
        size: ``(height, width)`` of the image.

    Returns:
        ``[N, 1, H, W]`` in the masks' dtype.
    """
    side = masks.shape[-1]
    rows = _samples(boxes[:, 1], boxes[:, 3], side, size[0]).to(masks.dtype)  # [N, H, M]
    columns = _samples(boxes[:, 0], boxes[:, 2], side, size[1]).to(masks.dtype)  # [N, W, M]
    return (rows @ masks[:, 0] @ columns.transpose(1, 2))[:, None]  # [N, 1, H, W]


def _samples(low: Tensor, high: Tensor, side: int, size: int) -> Tensor:
    """How much of each mask pixel ``[M]`` every image pixel ``[size]`` takes, ``[N, size, M]``."""
    centres = torch.arange(size, device=low.device) + 0.5
    position = (centres - low[:, None]) / (high - low)[:, None] * side - 0.5  # [N, size]
    distance = (position[..., None] - torch.arange(side, device=low.device)).abs()
    return (1 - distance).clamp(min=0).nan_to_num(nan=0.0)
