"""Images to compare on: photographs that come with scikit-image, and awkward sizes."""

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


def awkward_images(large: tuple[int, int]) -> list[Tensor]:
    """20 x 20 pixels, a strip of one row, grey in three channels, and one of (height, width)."""
    astronaut = to_tensor(skimage.data.astronaut())
    camera = torch.from_numpy(skimage.data.camera()).float() / 255
    return [
        astronaut[:, 100:120, 200:220],
        astronaut[:, 256:257, :400],
        camera.expand(3, -1, -1).contiguous(),
        torch.nn.functional.interpolate(astronaut[None], size=large, mode="bilinear")[0],
    ]


def to_tensor(array: np.ndarray) -> Tensor:
    """``[H, W, 3]`` uint8 to ``[3, H, W]`` in 0-1."""
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255
