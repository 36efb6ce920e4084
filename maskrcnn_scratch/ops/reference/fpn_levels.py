"""The level of each box by FPN's Eq. 1."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops.boxes import box_area


def fpn_levels(
    boxes: Tensor,
    finest: int,
    coarsest: int,
    canonical_scale: float,
    canonical_level: float,
    epsilon: float,
) -> Tensor:
    """``[R, 4]`` -> index of the level ``[R]``, 0 for the finest."""
    side = torch.sqrt(box_area(boxes))
    levels = torch.floor(canonical_level + torch.log2(side / canonical_scale) + epsilon)
    levels = levels.nan_to_num(finest)  # boxes of negative area are pooled too
    return levels.clamp(min=finest, max=coarsest).to(torch.int64) - finest
