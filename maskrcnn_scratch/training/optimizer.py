"""Builds the optimizer that a training configuration names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from maskrcnn_scratch.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of all parameters that are not frozen. On a GPU it is one fused kernel."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "fused": any(parameter.is_cuda for parameter in trained),
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, **options)
    return torch.optim.SGD(trained, momentum=config.momentum, **options)
