"""The convolution block that the FPN, the RPN and the heads consist of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn


class Conv2dNormActivation(nn.Sequential):
    """Convolution, optional normalisation, optional ReLU: ``[N, in, H, W]`` -> ``[N, out, H, W]``.

    Padding keeps height and width. Keys of the state dict: ``0`` is the convolution, ``1`` the
    normalisation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd.
        dilation: of the convolution.
        norm_layer: called with the number of channels. Without it the convolution has a bias.
        activation: whether a ReLU follows.
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
    """Lets ``module`` load state dicts of torchvision 0.12 and earlier.

    Args:
        module: whose convolutions were not yet ``Conv2dNormActivation`` then.
        renamed: the new name of each convolution by its old name, relative to ``module``.
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
