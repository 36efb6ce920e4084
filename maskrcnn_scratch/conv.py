"""The convolution block that FPN, RPN and the heads are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn


class Conv2dNormActivation(nn.Sequential):
    """Convolution, then normalisation and ReLU where asked for; spatial size kept at stride 1.

    Keys of the state dict: ``0`` is the convolution, ``1`` the normalisation.

    Args:
        norm_layer: called with the number of channels; the convolution has a bias only without it.
        activation: False leaves out the ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        dilation: int = 1,
        norm_layer: Callable[[int], nn.Module] | None = None,
        activation: bool = True,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                padding=(kernel_size - 1) // 2 * dilation,
                dilation=dilation,
                bias=norm_layer is None,
            )
        ]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


def accept_old_keys(module: nn.Module, renamed: Mapping[str, str]) -> None:
    """Lets ``module`` load state dicts from before its convolutions became blocks.

    Args:
        renamed: new name of a convolution by its old one, both relative to ``module``.
    """

    module.register_load_state_dict_pre_hook(partial(_rename, renamed))


def _rename(
    renamed: Mapping[str, str], _: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any
) -> None:
    for old, new in renamed.items():
        for parameter in ("weight", "bias"):
            key = f"{prefix}{old}.{parameter}"
            if key in state_dict:
                state_dict[f"{prefix}{new}.{parameter}"] = state_dict.pop(key)
