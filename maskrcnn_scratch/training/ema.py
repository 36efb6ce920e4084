"""A running average of a model's weights, which often predicts better than the last ones."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """Keeps ``average = decay * average + (1 - decay) * weights`` (Polyak averaging).

    Early on the average would hang on to the first weights; so the decay starts low and grows to
    its value as (1 + n) / (10 + n) over the updates n.

    Args:
        model: copied; ``module`` is the copy, in evaluation mode, and holds the average.
        decay: share of the old average at each update, in 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights of ``model`` after ``step`` updates; integers are copied."""
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
