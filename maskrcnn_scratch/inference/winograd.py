"""Winograd convolutions in place of the 3x3 convolutions of a model that only detects.

See ``ops.conv3x3`` for what is computed and how it rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from maskrcnn_scratch.backbone import IntermediateLayerGetter
from maskrcnn_scratch.ops import conv3x3, transform_conv3x3_weight
from maskrcnn_scratch.winograd import TILES, replace_convolutions
from maskrcnn_scratch.without_memory import without_memory


class WinogradConv2d(nn.Conv2d):
    """A convolution for inference whose float32 outputs on the CPU come from ``ops.conv3x3``.

    Anything else runs as in ``nn.Conv2d``: other devices, dtypes and autocast, inputs that need a
    gradient, and graphs that are exported or traced, which therefore run anywhere.

    The state dict is that of ``nn.Conv2d``. The transformed weight is computed anew when weights
    are loaded, moved or converted; not when values of ``weight`` are changed in place.

    Args:
        conv: gives the parameters, which are shared; ``reason_to_keep(conv)`` is None.
        m: outputs of a tile along each axis, 2 or 4.
        relu: whether negative outputs become 0.

    Shapes: ``[N, F, H, W]`` -> ``[N, O, H, W]``, channels-last.
    """

    transformed_weight: Tensor

    def __init__(self, conv: nn.Conv2d, m: int, relu: bool = False) -> None:
        sizes = conv.in_channels, conv.out_channels, 3
        with without_memory():
            super().__init__(*sizes, padding=1, bias=conv.bias is not None)
        self.weight, self.bias = conv.weight, conv.bias
        self.m, self.relu = m, relu
        self.register_buffer("transformed_weight", None, persistent=False)
        self.register_load_state_dict_post_hook(_transform_weight)
        _transform_weight(self)
        self.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """Convolution, and ReLU if it is part of it."""
        if self._uses_kernel(input):
            return conv3x3(input, self.transformed_weight, self.bias, self.relu)
        output = super().forward(input)
        return F.relu(output) if self.relu else output

    def _uses_kernel(self, input: Tensor) -> bool:
        return (
            input.device.type == "cpu"
            and input.dtype == self.transformed_weight.dtype == torch.float32
            and input.dim() == 4
            and not torch.is_autocast_enabled("cpu")
            and not (torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad))
            # Not is_exporting(), which is true in every graph that torch 2.11 compiles.
            and not torch.compiler._is_exporting_flag
            and not is_tracing()
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WinogradConv2d:
        super()._apply(fn, recurse)
        _transform_weight(self)
        return self

    def extra_repr(self) -> str:
        """The arguments, as in ``nn.Conv2d``."""
        return f"{super().extra_repr()}, m={self.m}, relu={self.relu}"


@torch.no_grad()
def _transform_weight(conv: WinogradConv2d, *_: Any) -> None:
    conv.transformed_weight = transform_conv3x3_weight(conv.weight, conv.m)


def use_winograd(model: nn.Module, tile: str) -> dict[str, str]:
    """Replaces the 3x3 convolutions of stride 1 in ``model``, in place, by ``WinogradConv2d``.

    In an ``nn.Sequential``, the ReLU that follows such a convolution becomes part of it.

    Args:
        tile: ``"f2"`` or ``"f4"``, for F(2x2, 3x3) or F(4x4, 3x3).

    Returns:
        The 3x3 convolutions of stride 1 that were left alone: their names, and the reasons.

    Raises:
        ValueError: another ``tile``, or a model without any convolution that can be replaced.
    """
    if tile not in TILES:
        raise ValueError(f"winograd must be True, 'f2' or 'f4', not {tile!r}")
    return replace_convolutions(model, partial(_replace, m=TILES[tile]))


def _replace(parent: nn.Module, name: str, m: int) -> None:
    """Replaces the convolution ``name`` of ``parent``, with the ReLU that follows it, if any."""
    relu = following_relu(parent, name)
    setattr(parent, name, WinogradConv2d(getattr(parent, name), m, relu is not None))
    if relu is not None:
        setattr(parent, relu, nn.Identity())


def following_relu(parent: nn.Module, name: str) -> str | None:
    """Name of the ReLU that sees what the child ``name`` gives, if nothing else does.

    The order of the children is known for an ``nn.Sequential``, and for the
    ``IntermediateLayerGetter`` that has a ResNet's stem. None for other parents, and where the
    getter returns what lies between the two.
    """
    if type(parent).forward not in (nn.Sequential.forward, IntermediateLayerGetter.forward):
        return None
    read_by_others: Any = getattr(parent, "return_layers", ())
    names = list(dict(parent.named_children()))
    for current, following in pairwise(names[names.index(name) :]):
        if current in read_by_others:
            return None
        module = getattr(parent, following)
        if type(module) is nn.ReLU and not module._forward_hooks and not module._forward_pre_hooks:
            return following
        if type(module) is not nn.Identity:
            return None
    return None
