"""Presets that turn an image into a model's input, one per task of the published weights.

As in torchvision/transforms/_presets.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageClassification", "ObjectDetection"]


def _pixels(image: Image.Image | Tensor) -> Tensor:
    """``[..., channels, H, W]`` in the image's dtype; a grayscale PIL image has one channel."""
    if isinstance(image, Tensor):
        return image
    if image.mode == "P":
        raise ValueError("the image is palette-indexed (mode P): pass image.convert('RGB')")
    pixels = torch.from_numpy(np.array(image))  # [H, W] or [H, W, channels]
    return (pixels[..., None] if pixels.ndim == 2 else pixels).permute(2, 0, 1)


def _to_float(pixels: Tensor) -> Tensor:
    """float32 in 0-1; integers are divided by the largest value of their dtype."""
    if pixels.is_floating_point():
        return pixels.float()
    return pixels.float() / (1 if pixels.dtype == torch.bool else torch.iinfo(pixels.dtype).max)


@dataclass(frozen=True)
class ObjectDetection:
    """For the detection models, which resize and normalise themselves.

    Takes a PIL image or a tensor ``[..., channels, H, W]`` of any dtype. Returns float32 of that
    shape in 0-1.
    """

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return _to_float(_pixels(image))


@dataclass(frozen=True)
class ImageClassification:
    """For an ImageNet classifier: resizes the shorter side, crops the centre, normalises.

    Takes a PIL image or a tensor ``[..., 3, H, W]``. Returns float32
    ``[..., 3, crop_size, crop_size]``. ``resize_size`` must not be below ``crop_size``.
    """

    crop_size: int
    resize_size: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        pixels = _to_float(_pixels(self._resize(image)))
        top, left = (round((side - self.crop_size) / 2) for side in pixels.shape[-2:])
        pixels = pixels[..., top : top + self.crop_size, left : left + self.crop_size]
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean.to(pixels.device)) / std.to(pixels.device)

    def _resize(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        height, width = (
            image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
        )
        short = min(height, width)
        size = int(self.resize_size * height / short), int(self.resize_size * width / short)
        if not isinstance(image, Tensor):
            return image.resize(size[::-1], resample=2)  # PIL.Image.Resampling.BILINEAR
        batched = image if image.ndim == 4 else image[None]  # [N, 3, H, W]
        resized = F.interpolate(batched.float(), size=size, mode="bilinear", antialias=True)
        if not image.is_floating_point():
            resized = resized.round().to(image.dtype)
        return resized if image.ndim == 4 else resized[0]
