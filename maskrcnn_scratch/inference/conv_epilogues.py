"""Bias, shortcut and ReLU as part of the convolution before them, by cuDNN.

A folded convolution has a bias. On a GPU PyTorch adds it after the convolution, and then runs the
ReLU and the addition of a shortcut: each reads and writes the whole map once more. cuDNN has one
operation for ``relu(conv(x) + bias)`` and one for ``relu(conv(x) + bias + shortcut)``. Neither has
run on a GPU here yet; ``optimize`` compares their result with the original's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch.backbone import BasicBlock, Bottleneck
from maskrcnn_scratch.inference.winograd import following_relu


def uses_cudnn(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether cuDNN's operations can replace ``conv`` and what follows it.

    They are for NVIDIA GPUs, know neither autocast nor gradients, and are not seen by compilers.
    """
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad)
    return (
        x.device.type == "cuda"
        and torch.version.hip is None
        and torch.backends.cudnn.enabled
        and x.dtype == conv.weight.dtype
        and not (needs_grad or torch.is_autocast_enabled("cuda") or torch.compiler.is_compiling())
    )


def geometry(conv: nn.Conv2d) -> tuple[Any, Any, Any, int]:
    """Stride, padding, dilation and groups, as cuDNN's operations take them."""
    return conv.stride, conv.padding, conv.dilation, conv.groups


class ConvReLU(nn.Conv2d):
    """A convolution with the ReLU that follows it; its state dict is that of the convolution.

    Args:
        conv: gives the parameters, which are shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        size: Any = conv.kernel_size
        bias = conv.bias is not None
        super().__init__(
            conv.in_channels, conv.out_channels, size, *geometry(conv), bias, device="meta"
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """``relu(conv(x))``: ``[N, C, H, W]`` -> ``[N, O, H', W']``."""
        if not uses_cudnn(self, input):
            return F.relu(super().forward(input), inplace=True)
        return torch.cudnn_convolution_relu(input, self.weight, self.bias, *geometry(self))


class FusedBlock(nn.Module):
    """A ``BasicBlock`` or ``Bottleneck`` whose batch norms are folded, with the same state dict.

    Args:
        block: ``is_folded(block)`` is true. Its parameters are shared.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        *first, self.last = [name for name in block._modules if name.startswith("conv")]
        self.first = first
        for name in first:
            self.add_module(name, ConvReLU(getattr(block, name)))
        self.add_module(self.last, getattr(block, self.last))
        self.downsample: Any = block.downsample
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> ``[N, O, H', W']``, as the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for name in self.first:
            x = getattr(self, name)(x)
        last = getattr(self, self.last)
        if not uses_cudnn(last, x):
            return F.relu(last(x) + shortcut, inplace=True)
        return torch.cudnn_convolution_add_relu(
            x, last.weight, shortcut, 1, last.bias, *geometry(last)
        )


def fuse_epilogues(model: nn.Module) -> None:
    """Replaces folded residual blocks, and convolutions that a ReLU follows, in place."""
    for name, block in list(model.named_modules()):
        if is_folded(block):
            _replace(model, name, FusedBlock(block))
    for name, conv in list(model.named_modules()):
        if not is_plain(conv):
            continue
        parent_name, _, child_name = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        if relu := following_relu(parent, child_name):
            setattr(parent, child_name, ConvReLU(conv))
            setattr(parent, relu, nn.Identity())


def is_folded(block: nn.Module) -> bool:
    """A residual block of this package without batch norms, and with plain convolutions."""
    if type(block).forward not in (BasicBlock.forward, Bottleneck.forward) or is_changed(block):
        return False
    layers = dict(block.named_children())
    return (
        all(type(layer) is nn.Identity for name, layer in layers.items() if name.startswith("bn"))
        and all(is_plain(layer) for name, layer in layers.items() if name.startswith("conv"))
        and type(layers["relu"]) is nn.ReLU
        and not is_changed(layers["relu"])
    )


def is_plain(conv: nn.Module) -> bool:
    """Exactly a ``nn.Conv2d`` that pads with zeros, and that nothing watches or changes."""
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and not is_changed(conv)
    )


def is_changed(module: nn.Module) -> bool:
    """Whether a module has hooks or a ``forward`` of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent_name, _, child_name = name.rpartition(".")
    setattr(model.get_submodule(parent_name), child_name, module)
