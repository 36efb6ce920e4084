"""Pixels and features as pictures: the batch without its normalisation, features as colours.

Shapes: see ``structures``.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskrcnn_scratch.structures import StageOutputs


@dataclass(frozen=True, eq=False)
class ColorBasis:
    """How features become colours: their projections, scaled to 0-1.

    Attributes:
        mean: ``[F]``.
        directions: ``[3, F]``.
        low, high: ``[3]``: projections that become 0 and 1.
    """

    mean: Tensor
    directions: Tensor
    low: Tensor
    high: Tensor

    def colors(self, features: Tensor) -> np.ndarray:
        """``[R, F, H, W]`` -> uint8 ``[R, H, W, 3]``."""
        shifted = features.float() - self.mean[:, None, None]
        projected = torch.einsum("kf,rfhw->rhwk", self.directions, shifted)
        scaled = (projected - self.low) / (self.high - self.low).clamp(min=1e-12)
        scaled = scaled.nan_to_num(0.0).clamp(0, 1)
        return (scaled * 255).round().to(torch.uint8).numpy(force=True)


def color_basis(features: Tensor) -> ColorBasis:
    """The three principal components of ``features [F, H, W]``; 1 % at each end are cut off."""
    flat = features.float().flatten(1).nan_to_num(0.0, 0.0, 0.0)  # [F, H * W]
    mean = flat.mean(1)
    centred = flat - mean[:, None]
    _, vectors = torch.linalg.eigh(centred @ centred.T)  # by ascending variance
    directions = vectors[:, -3:].flip(1).T  # [3, F], or fewer rows than 3
    if len(directions) < 3:
        padding = directions.new_zeros((3 - len(directions), directions.shape[1]))
        directions = torch.cat((directions, padding))
    projected = (directions @ centred).numpy(force=True)  # [3, H * W]
    low, high = np.percentile(projected, (1, 99), axis=1)
    return ColorBasis(mean, directions, mean.new_tensor(low), mean.new_tensor(high))


def feature_colors(features: Tensor) -> tuple[np.ndarray, ColorBasis]:
    """``[F, H, W]`` as colours uint8 ``[H, W, 3]``, and the basis that they come from."""
    basis = color_basis(features)
    return basis.colors(features[None])[0], basis


def batch_pixels(stages: StageOutputs, image: int, padded: bool = False) -> np.ndarray:
    """The normalised image as uint8 ``[H, W, 3]``: its lowest value is black, its highest white.

    Channels other than three are shown as the mean of all. With ``padded`` the padding is black.
    """
    pixels = stages.images.tensors[image].float()  # [3, H, W]
    height, width = stages.images.sizes[image].tolist()
    inside = pixels[:, :height, :width]
    low, high = inside.amin(), inside.amax()
    shown = pixels if padded else inside
    scaled = (shown - low) / (high - low).clamp(min=1e-12)
    if padded:
        scaled[:, height:] = 0
        scaled[:, :, width:] = 0
    return to_pixels(scaled)


def to_pixels(image: Tensor) -> np.ndarray:
    """``[3, H, W]`` in 0-1 as uint8 ``[H, W, 3]``."""
    if image.shape[0] != 3:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    pixels = (image.float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous().numpy(force=True)


def data_uri(pixels: np.ndarray, lossless: bool = False) -> str:
    """``[H, W]`` or ``[H, W, 3]``, uint8, as a PNG or JPEG that a page can hold."""
    file = io.BytesIO()
    kind = "png" if lossless else "jpeg"
    Image.fromarray(pixels).save(file, kind, **({} if lossless else {"quality": 87}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
