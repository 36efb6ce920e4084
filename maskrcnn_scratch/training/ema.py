"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """Keeps ``average = decay * average + (1 - decay) * weights`` (Polyak averaging).

    The decay of update n is at most (1 + n) / (10 + n), so that the initial weights do not dominate
    the first averages. ``torch.optim.swa_utils.AveragedModel`` gives other values: its first update
    is a copy, and its decay is constant.

    Args:
        model: is copied. ``module`` is the copy, in eval mode, with the averaged weights.
        decay: weight of the old average at each update, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Updates the average with ``model`` after ``step`` updates. Integer buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = [], []
        current = model.state_dict()
        for name, average in self.module.state_dict().items():
            if average.is_floating_point():
                averages.append(average)
                weights.append(current[name])
            else:
                average.copy_(current[name])
        torch._foreach_lerp_(averages, weights, 1 - decay)
