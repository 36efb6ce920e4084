"""Faster arithmetic for a model that is trained on the CPU in float32."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from maskrcnn_scratch.onednn import OneDNNLinear
from maskrcnn_scratch.ops.winograd_conv2d import TransformedWeight, winograd_conv2d
from maskrcnn_scratch.winograd import TILES, describe_kept, replace_convolutions
from maskrcnn_scratch.without_memory import without_memory

# Locations of all images of a batch together. With fewer, transforming the weight takes longer than
# the multiplications that are saved would.
LEAST_LOCATIONS = 2000


class TrainedWinogradConv2d(nn.Conv2d):
    """A convolution whose output and gradients come from ``ops.winograd_conv2d``.

    Only float32 on the CPU, and inputs of at least ``LEAST_LOCATIONS``; anything else runs as in
    ``nn.Conv2d``, autocast included. The state dict is that of ``nn.Conv2d``. The weight is
    transformed once per step for each direction; each takes four times its memory with m = 4.

    Args:
        conv: gives the parameters, which are shared; ``reason_to_keep(conv)`` is None.
        m: outputs of a tile along each axis, 2 or 4.

    Shapes: ``[N, F, H, W]`` -> ``[N, O, H, W]``, channels-last.
    """

    def __init__(self, conv: nn.Conv2d, m: int) -> None:
        sizes = conv.in_channels, conv.out_channels, 3
        with without_memory():
            super().__init__(*sizes, padding=1, bias=conv.bias is not None)
        self.weight, self.bias = conv.weight, conv.bias
        self.transform = TransformedWeight(m)
        self.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """Convolution."""
        if not (
            input.device.type == self.weight.device.type == "cpu"
            and input.dtype == self.weight.dtype == torch.float32
            and input.dim() == 4
            and len(input) * input.shape[2] * input.shape[3] >= LEAST_LOCATIONS
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        ):
            return super().forward(input)
        return winograd_conv2d(input, self.weight, self.bias, self.transform)

    def extra_repr(self) -> str:
        """The arguments, as in ``nn.Conv2d``."""
        return f"{super().extra_repr()}, m={self.transform.m}"


def train_with_winograd(model: nn.Module, tile: str = "f4") -> None:
    """Replaces the 3x3 convolutions of stride 1 and fully connected layers in ``model``, in place.

    A warning names the first of those that were left alone.

    Args:
        tile: ``"f2"`` or ``"f4"``, for F(2x2, 3x3) or F(4x4, 3x3). Gradients of weights are always
            computed by F(2x2, 3x3).

    Raises:
        ValueError: the model has no convolution that can be replaced.
    """

    def replace(parent: nn.Module, name: str) -> None:
        setattr(parent, name, TrainedWinogradConv2d(getattr(parent, name), TILES[tile]))

    if kept := replace_convolutions(model, replace):
        warnings.warn(describe_kept(kept), stacklevel=2)
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks):
            model.set_submodule(name, OneDNNLinear(layer))
