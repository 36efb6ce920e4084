"""Which convolutions of a model can be computed by Winograd's algorithm, and their replacement."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from maskrcnn_scratch.ops import can_conv3x3

TILES = {"f2": 2, "f4": 4}  # outputs of a tile along each axis


def replace_convolutions(
    model: nn.Module, replace: Callable[[nn.Module, str], None]
) -> dict[str, str]:
    """Calls ``replace(parent, name)`` for each convolution of ``model`` that allows Winograd.

    Returns:
        The 3x3 convolutions of stride 1 that were left alone: their names, and the reasons.

    Raises:
        ValueError: there is no convolution that can be replaced.
    """
    left_alone, replaced = {}, 0
    for name, conv in list(model.named_modules()):
        if not isinstance(conv, nn.Conv2d) or (conv.kernel_size, conv.stride) != ((3, 3), (1, 1)):
            continue
        reason = reason_to_keep(conv)
        if reason is None:
            parent_name, _, child_name = name.rpartition(".")
            replace(model.get_submodule(parent_name), child_name)
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
    """One line about what ``replace_convolutions`` returns, which names the first of them."""
    name, reason = next(iter(kept.items()))
    return f"{len(kept)} 3x3 convolutions run without Winograd; the first is {name}: {reason}"


def reason_to_keep(conv: nn.Conv2d) -> str | None:
    """Why Winograd's algorithm can't compute ``conv``, or None."""
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
