"""Winograd convolutions in place of the 3x3 convolutions of a model that only detects.

See ``ops.conv3x3`` for what is computed and how it rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from maskrcnn_scratch.ops import can_conv3x3, conv3x3, transform_conv3x3_weight

TILES = {"f2": 2, "f4": 4}  # outputs of a tile along each axis


class WinogradConv2d(nn.Conv2d):
    """A convolution for inference whose float32 outputs on the CPU come from ``ops.conv3x3``.

    Anything else runs as in ``nn.Conv2d``: other devices, dtypes and autocast, inputs that need a
    gradient, and graphs that are exported or traced, which therefore run anywhere.

    The state dict is that of ``nn.Conv2d``. The transformed weight is computed anew when weights
    are loaded, moved or converted; not when somebody writes into ``weight``.

    Args:
        conv: gives the parameters, which are shared; ``reason_to_keep(conv)`` is None.
        m: outputs of a tile along each axis, 2 or 4.
        relu: whether negative outputs become 0.

    Shapes: ``[N, C, H, W]`` -> ``[N, O, H, W]``, channels-last.
    """

    transformed_weight: Tensor

    def __init__(self, conv: nn.Conv2d, m: int, relu: bool = False) -> None:
        sizes = conv.in_channels, conv.out_channels, 3
        super().__init__(*sizes, padding=1, bias=conv.bias is not None, device="meta")
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
            and not torch.compiler.is_exporting()
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
    left_alone, replaced = {}, 0
    for name, conv in list(model.named_modules()):
        if not isinstance(conv, nn.Conv2d) or (conv.kernel_size, conv.stride) != ((3, 3), (1, 1)):
            continue
        reason = reason_to_keep(conv)
        if reason is None:
            parent_name, _, child_name = name.rpartition(".")
            _replace(model.get_submodule(parent_name), child_name, TILES[tile])
            replaced += 1
        else:
            left_alone[name] = reason
    if not replaced:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_alone.items())[:1])
        raise ValueError(
            "winograd: the model has no 3x3 convolution that can be replaced"
            + (f" ({reasons})" if reasons else "")
        )
    return left_alone


def describe_kept(kept: Mapping[str, str]) -> str:
    """One line about what ``use_winograd`` returns, which names the first of them."""
    name, reason = next(iter(kept.items()))
    return f"{len(kept)} 3x3 convolutions run without Winograd; the first is {name}: {reason}"


def reason_to_keep(conv: nn.Conv2d) -> str | None:
    """Why ``WinogradConv2d`` can't replace ``conv``, or None."""
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, not exactly nn.Conv2d"
    required = {
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
        "padding_mode": "zeros",
    }
    for name, value in required.items():
        found = getattr(conv, name)
        if found != value:
            return f"its {name} is {found}, not {value}"
    if not can_conv3x3(conv.weight):
        return (
            f"it has {conv.in_channels} input and {conv.out_channels} output channels, which are "
            "not multiples of 16 and 32"
        )
    if conv.weight.dtype != torch.float32:
        return f"its weight is {conv.weight.dtype}, not torch.float32"
    if conv.weight.device.type != "cpu":
        return f"its weight is on {conv.weight.device}, not on the CPU"
    if conv._forward_hooks or conv._forward_pre_hooks:
        return "it has forward hooks"
    return None


def _replace(parent: nn.Module, name: str, m: int) -> None:
    """Replaces the convolution ``name`` of ``parent``, with the ReLU that follows it, if any."""
    relu = following_relu(parent, name)
    setattr(parent, name, WinogradConv2d(getattr(parent, name), m, relu is not None))
    if relu is not None:
        setattr(parent, relu, nn.Identity())


def following_relu(parent: nn.Module, name: str) -> str | None:
    """Name of the ReLU of an ``nn.Sequential`` that sees nothing but what ``name`` gives."""
    if not isinstance(parent, nn.Sequential):
        return None
    names = list(dict(parent.named_children()))
    for following in names[names.index(name) + 1 :]:
        module = getattr(parent, following)
        if type(module) is nn.ReLU and not module._forward_hooks and not module._forward_pre_hooks:
            return following
        if type(module) is not nn.Identity:
            return None
    return None
