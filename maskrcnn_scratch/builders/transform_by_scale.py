"""A transform that resizes by a factor in inference, for models that are trained on crops."""

from __future__ import annotations

import math
from typing import Any

import torch

from maskrcnn_scratch.transform import GeneralizedRCNNTransform


class TransformByScale(GeneralizedRCNNTransform):
    """Resizes by a factor in inference; otherwise the same as ``transform``."""

    def __init__(self, transform: GeneralizedRCNNTransform, test_scale: float) -> None:
        super().__init__(
            transform.min_size,
            transform.max_size,
            transform.image_mean,
            transform.image_std,
            transform.size_divisible,
            transform.fixed_size,
            paste=transform.paste,
        )
        self.test_scale = test_scale

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self.training:
            return super().resized_size(height, width)
        # Sizes may be symbols, as in the base class.
        scale = torch.sym_min(self.test_scale, self.max_size / torch.sym_max(height, width))
        sides: list[Any] = [math.trunc(side * scale + 0.5) for side in (height, width)]
        return torch.sym_max(sides[0], 1), torch.sym_max(sides[1], 1)
