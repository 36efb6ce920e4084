"""Mask pasting as two matrix products: one interpolates rows, the other columns.

Shapes: as in ``ops.paste_masks``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """``[D, 1, M, M]``, ``[D, 4]`` -> ``[D, 1, height, width]``.

    There is no loop and no shape that depends on values, so it can be exported.
    """
    dtype = torch.promote_types(masks.dtype, torch.float32)
    side = masks.shape[-1]
    rows = _axis_weights(boxes[:, 1], boxes[:, 3], side, height, dtype)  # [D, H, M + 2]
    columns = _axis_weights(boxes[:, 0], boxes[:, 2], side, width, dtype)  # [D, W, M + 2]
    padded = F.pad(masks[:, 0].to(dtype), (1, 1, 1, 1))  # [D, M + 2, M + 2]
    pasted = rows @ padded @ columns.transpose(1, 2)  # [D, H, W]
    return pasted[:, None].to(masks.dtype)


def paste_masks_packed(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float
) -> Tensor:
    """``[D, 1, M, M]``, ``[D, 4]`` -> int64 ``[D, width, ceil(height / 64)]``."""
    on = paste_masks(masks, boxes, height, width)[:, 0] >= threshold  # [D, H, W]
    words = -(-height // 64)
    on = F.pad(on.transpose(1, 2), (0, 64 * words - height))  # [D, W, words * 64]
    bit = torch.arange(64, device=on.device)
    return (on.reshape(*on.shape[:2], words, 64).long() << bit).sum(-1)  # [D, W, words]


def _axis_weights(low: Tensor, high: Tensor, side: int, size: int, dtype: torch.dtype) -> Tensor:
    """Interpolation weights ``[D, size, M + 2]`` of each image pixel for each mask pixel."""
    padded_side = side + 2
    half = (high - low) * 0.5 * (padded_side / side)
    centre = (high + low) * 0.5
    first, last = centre - half, centre + half  # [D]
    fits = (first.abs() < 2**61) & (last.abs() < 2**61)
    first = torch.where(fits, first, 0).to(torch.int64)
    last = torch.where(fits, last, -1).to(torch.int64)
    length = (last - first + 1).clamp(min=1)

    pixels = torch.arange(size, device=low.device)
    scale = padded_side / length.to(dtype)
    position = scale[:, None] * ((pixels - first[:, None]).to(dtype) + 0.5) - 0.5  # [D, size]
    position = position.clamp(0, padded_side - 1)
    mask_pixels = torch.arange(padded_side, device=low.device, dtype=dtype)
    weights = (1 - (position[..., None] - mask_pixels).abs()).clamp(min=0)  # [D, size, M + 2]
    inside = (pixels >= first[:, None]) & (pixels <= last[:, None])
    return weights * inside[..., None]
