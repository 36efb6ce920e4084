"""What is checked, and the sizes that it is checked with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

# The losses that a function can replace.
LossName: TypeAlias = Literal[
    "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"
]


@dataclass(frozen=True)
class Setting:
    """Sizes of the inputs.

    Args:
        side: shorter side of the images in pixels, a multiple of 32.
        channels: of the part's input: ``F`` of the feature maps; of a predictor ``E``.
        loss: which loss the part replaces; None if its name or parameters tell.

    Raises:
        ValueError: a size that cannot be used.
    """

    side: int = 128
    channels: int = 64
    loss: LossName | None = None

    num_classes = 4  # background, circle, square and triangle of ``ShapesDataset``

    def __post_init__(self) -> None:
        if self.side < 32 or self.side % 32:
            raise ValueError(f"side must be a positive multiple of 32, got {self.side}")
        if self.channels < 1:
            raise ValueError(f"channels must be positive, got {self.channels}")


class Subject:
    """The part under check.

    Args:
        build: makes the part; it is called again where a check needs one with other weights.
        setting: sizes of the inputs.

    Raises:
        Exception: whatever ``build`` raises.
    """

    def __init__(self, build: Callable[[], Any], setting: Setting) -> None:
        self.build = build
        self.setting = setting
        self.part = build()
        if isinstance(self.part, nn.Module):
            self.part.eval()

    def copy(self) -> Any:
        """A copy of the part, so that training and conversion leave the part as it is.

        The part itself where it cannot be copied, which the check "deepcopy" reports.
        """
        try:
            return copy.deepcopy(self.part)
        except Exception:
            return self.part


def flatten(value: Any) -> list[Tensor]:
    """The tensors of nested sequences and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in flatten(item)]
    return []


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with ``function`` applied to each tensor in nested sequences and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: map_tensors(function, item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_tensors(function, item) for item in value]
    return value


def shapes(value: Any) -> str:
    """Types and shapes in words, such as ``float32 [3, 64, 32, 32]``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {shapes(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(shapes, value)) + ")"
    return type(value).__name__


def relative_error(value: Tensor, expected: Tensor) -> float:
    """``|value - expected| / |expected|`` (Euclidean norms); 0 for two zeros, NaN for NaN."""
    difference = (value.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0


def random_boxes(count: int, side: int, seed: int = 0) -> Tensor:
    """``[count, 4]`` boxes inside an image of ``side`` pixels, each side at least 4 pixels."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 4 + torch.rand(count, 2, generator=generator) * (side / 2 - 4)
    corners = torch.rand(count, 2, generator=generator) * (side - sizes)
    return torch.cat((corners, corners + sizes), dim=1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed numbers, the same at each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
