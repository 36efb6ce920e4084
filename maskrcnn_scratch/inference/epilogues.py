"""Bias, shortcut and ReLU as part of the layer before them (its "epilogue"), by cuDNN or oneDNN.

PyTorch runs a ReLU, and the addition of a shortcut, after the convolution: each reads and writes
the whole map once more. The libraries that compute the convolutions have operations for both:

    relu(conv(x) + bias)               cuDNN, oneDNN
    relu(conv(x) + bias + shortcut)    cuDNN, oneDNN
    conv(x) + bias + other             oneDNN
    relu(linear(x) + bias)             oneDNN

oneDNN stores a sum in the memory of its second term. This saves one pass over the map, and a new
map: when a new map of 60 MB is first written, the operating system has to clear its 15,000 pages.
oneDNN's operations are those that ``torch.compile`` uses; their ReLU makes 0 of NaN. cuDNN's have
not run on a GPU here yet. ``optimize`` compares the results with the original's.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch.backbone import BasicBlock, Bottleneck, FeaturePyramidNetwork
from maskrcnn_scratch.inference.winograd import WinogradConv2d, following_relu
from maskrcnn_scratch.onednn import (
    OneDNNLinear,
    can_use_onednn,
    is_eager,
    needs_gradient,
    onednn,
)


def uses_cudnn(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether cuDNN's operations can replace ``conv`` and what follows it."""
    return (
        x.device.type == "cuda"
        and torch.version.hip is None
        and torch.backends.cudnn.enabled
        and is_eager(conv, x)
        and not needs_gradient(conv, x)
    )


def uses_onednn(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether oneDNN's operations can replace ``conv`` and what follows it."""
    return can_use_onednn(conv, x) and not needs_gradient(conv, x)


def conv_add(
    conv: nn.Conv2d, x: Tensor, other: Tensor, *, relu: bool, overwrite: bool = True
) -> Tensor:
    """``conv(x) + other``, then a ReLU if ``relu``; ``other`` is ``[N, O, H', W']`` as the result.

    Args:
        overwrite: whether the result may lie in the memory of ``other``.
    """
    plain = is_plain(conv)
    if relu and plain and uses_cudnn(conv, x):
        arguments = conv.bias, *geometry(conv)
        return torch.cudnn_convolution_add_relu(x, conv.weight, other, 1, *arguments)
    if overwrite and plain and uses_onednn(conv, x):
        then: tuple[Any, ...] = "add", 1.0, "relu" if relu else None, [], ""
        return onednn._convolution_pointwise_.binary(other, x, *onednn_arguments(conv), *then)
    output = conv(x).add_(other)
    return output.relu_() if relu else output


def geometry(conv: nn.Conv2d) -> tuple[Any, Any, Any, int]:
    """Stride, padding, dilation and groups, as cuDNN's operations take them."""
    return conv.stride, conv.padding, conv.dilation, conv.groups


def onednn_arguments(conv: nn.Conv2d) -> tuple[Any, ...]:
    """Weight, bias, padding, stride, dilation and groups, as oneDNN's operations take them."""
    return conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups


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
        """``relu(conv(x))``: ``[N, F, H, W]`` -> ``[N, O, H', W']``."""
        if uses_cudnn(self, input):
            return torch.cudnn_convolution_relu(input, self.weight, self.bias, *geometry(self))
        if uses_onednn(self, input):
            then: tuple[Any, ...] = "relu", [], ""
            return onednn._convolution_pointwise(input, *onednn_arguments(self), *then)
        return F.relu(super().forward(input), inplace=True)


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
            self.add_module(name, with_relu(getattr(block, name)))
        self.add_module(self.last, getattr(block, self.last))
        self.downsample: Any = block.downsample
        self.train(block.training)

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """``[N, F, H, W]`` -> ``[N, O, H', W']``, as the block.

        Args:
            overwrite: whether the result may lie in the memory of ``x``.
        """
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.downsample is not None:
            overwrite = not is_changed(self.downsample)  # a hook may have kept the output
        for name in self.first:
            x = getattr(self, name)(x)
        return conv_add(getattr(self, self.last), x, shortcut, relu=True, overwrite=overwrite)


class FusedBlocks(nn.Sequential):
    """A stage of a ResNet: each block after the first may write over its input.

    Args:
        blocks: each a ``FusedBlock``.
    """

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__(OrderedDict(blocks.named_children()))
        self.train(blocks.training)

    def forward(self, input: Tensor) -> Tensor:
        """``[N, F, H, W]`` -> ``[N, O, H', W']``."""
        x, overwrite = input, False
        for block in self:
            x = block(x, overwrite)
            overwrite = not is_changed(block)
        return x


sum_of_levels = FeaturePyramidNetwork.merge


def merge_over(block: nn.Module, stage: Tensor, coarser: Tensor) -> Tensor:
    """``FeaturePyramidNetwork.merge``, which stores its result in the upsampled map's memory."""
    if not is_folded_conv(block):
        return sum_of_levels(block, stage, coarser)
    conv: Any = next(block.children())
    upsampled = F.interpolate(coarser, size=stage.shape[-2:])
    return conv_add(conv, stage, upsampled, relu=False)


def fuse_epilogues(model: nn.Module) -> None:
    """Replaces folded residual blocks, and layers that a ReLU follows or oneDNN computes, in place.

    An FPN then uses ``merge_over``. ``model`` itself stays the same module.
    """
    for name, module in list(model.named_modules())[1:]:
        if is_folded(module):
            parent, child_name = parent_of(model, name)
            setattr(parent, child_name, FusedBlock(module))
        elif isinstance(module, FeaturePyramidNetwork) and module.merge is sum_of_levels:
            module.merge = merge_over  # type: ignore[method-assign]
    for name, module in list(model.named_modules())[1:]:
        parent, child_name = parent_of(model, name)
        if is_stage(module):
            setattr(parent, child_name, FusedBlocks(module))
        elif is_plain(module) or is_plain_linear(module):
            relu = following_relu(parent, child_name)
            if isinstance(module, nn.Linear):
                setattr(parent, child_name, OneDNNLinear(module, relu is not None))
            elif relu is not None:
                setattr(parent, child_name, ConvReLU(module))
            if relu is not None:
                setattr(parent, relu, nn.Identity())


def with_relu(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with a ReLU after it."""
    if type(conv) is WinogradConv2d:
        return WinogradConv2d(conv, conv.m, relu=True)
    return ConvReLU(conv)


def is_folded(block: nn.Module) -> bool:
    """A residual block of this package without batch norms, and with plain convolutions."""
    if type(block).forward not in (BasicBlock.forward, Bottleneck.forward) or is_changed(block):
        return False
    layers = dict(block.named_children())
    return (
        all(type(layer) is nn.Identity for name, layer in layers.items() if name.startswith("bn"))
        and all(
            is_plain(layer) or (type(layer) is WinogradConv2d and not is_changed(layer))
            for name, layer in layers.items()
            if name.startswith("conv")
        )
        and type(layers["relu"]) is nn.ReLU
        and not is_changed(layers["relu"])
        and ("downsample" not in layers or is_folded_conv(layers["downsample"]))
    )


def is_folded_conv(module: nn.Module) -> bool:
    """One plain convolution in an ``nn.Sequential``, and nothing after it."""
    if type(module).forward is not nn.Sequential.forward or is_changed(module):
        return False
    conv, *others = module.children()
    return is_plain(conv) and all(type(other) is nn.Identity for other in others)


def is_plain(conv: nn.Module) -> bool:
    """Exactly a ``nn.Conv2d`` that pads with zeros, unchanged (``is_changed``)."""
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and not is_changed(conv)
    )


def is_plain_linear(layer: nn.Module) -> bool:
    """Exactly a ``nn.Linear`` on the CPU, unchanged (``is_changed``)."""
    return type(layer) is nn.Linear and layer.weight.device.type == "cpu" and not is_changed(layer)


def is_stage(module: nn.Module) -> bool:
    """Exactly a ``nn.Sequential`` of ``FusedBlock``, unchanged (``is_changed``)."""
    blocks = list(module.children())
    return (
        type(module) is nn.Sequential
        and len(blocks) > 0
        and all(type(block) is FusedBlock for block in blocks)
        and not is_changed(module)
    )


def is_changed(module: nn.Module) -> bool:
    """Whether a module has hooks or a ``forward`` of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def parent_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module whose child ``name`` is, and the child's name in it."""
    parent_name, _, child_name = name.rpartition(".")
    return model.get_submodule(parent_name), child_name
