"""Images to compare on: photographs that come with scikit-image, and unusual sizes."""

from __future__ import annotations

import numpy as np
import skimage.data
import torch
from torch import Tensor

NAMES = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina",
         "immunohistochemistry")  # fmt: skip


def photographs() -> list[Tensor]:
    """Eight photographs ``[3, H, W]`` in 0-1."""
    arrays = [getattr(skimage.data, name)() for name in NAMES]
    arrays.append(skimage.data.stereo_motorcycle()[0])
    return [to_tensor(array) for array in arrays]


def unusual_images(min_size: int) -> list[Tensor]:
    """20 x 20 pixels, a strip of one row, grey in three channels, and a large image.

    Args:
        min_size: shorter side after the resize. The large image has 2.5 by 3.75 times as much, and
            the strip is short enough not to vanish.
    """
    large = min_size * 5 // 2, min_size * 15 // 4  # for 800: 2000 x 3000, its masks take 5 GB
    astronaut = to_tensor(skimage.data.astronaut())
    camera = torch.from_numpy(skimage.data.camera()).float() / 255
    return [
        astronaut[:, 100:120, 200:220],
        astronaut[:, 256:257, : min(400, min_size)],
        camera.expand(3, -1, -1).contiguous(),
        torch.nn.functional.interpolate(astronaut[None], size=large, mode="bilinear")[0],
    ]


def smaller(image: Tensor, longer_side: int) -> Tensor:
    """``image [3, H, W]``, resized if its longer side has more pixels than that."""
    factor = min(1.0, longer_side / max(image.shape[-2:]))
    return torch.nn.functional.interpolate(image[None], scale_factor=factor, mode="area")[0]


def to_tensor(array: np.ndarray) -> Tensor:
    """``[H, W, 3]`` uint8 to ``[3, H, W]`` in 0-1."""
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255
