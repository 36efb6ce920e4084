"""A differentiable 3x3 convolution by Winograd's algorithm.

Shapes: as in ``ops.conv3x3``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops.conv3x3 import (
    can_conv3x3,
    conv3x3,
    conv3x3_weight_gradient,
    transform_conv3x3_weight,
)


class TransformedWeight:
    """Transforms a weight for ``conv3x3``, and keeps the result until the weight changes.

    It is computed in the weight's dtype: float64 would take a fifth of the time of a convolution
    that it serves for one step only.

    An optimizer's step changes the weight, and so does loading a state dict. Writing through
    ``weight.data`` goes unnoticed.

    Args:
        m: outputs of a tile along each axis, 2 or 4.
    """

    def __init__(self, m: int) -> None:
        self.m = m
        self.kept: dict[bool, tuple[tuple[int, int], Tensor]] = {}

    def __call__(self, weight: Tensor, transposed: bool) -> Tensor:
        """As ``transform_conv3x3_weight``, of ``weight [O, F, 3, 3]``.

        Args:
            transposed: of the convolution that gives the gradient of the input instead: its input
                channels are ``O`` and its filters are turned by 180 degrees.
        """
        if weight.is_inference():  # has no version
            return self.transform(weight, transposed)
        key = weight.data_ptr(), weight._version
        if transposed not in self.kept or self.kept[transposed][0] != key:
            self.kept[transposed] = key, self.transform(weight, transposed)
        return self.kept[transposed][1]

    def transform(self, weight: Tensor, transposed: bool) -> Tensor:
        """The result, computed anew."""
        weight = weight.detach()
        if transposed:
            weight = weight.transpose(0, 1).flip(2, 3)
        return transform_conv3x3_weight(weight, self.m, weight.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return TransformedWeight, (self.m,)  # copies have weights of their own


def winograd_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, transform: Callable[[Tensor, bool], Tensor]
) -> Tensor:
    """``F.conv2d(input, weight, bias, padding=1)`` with Winograd also in the backward pass.

    The output and the gradient of the input are computed by ``conv3x3``, that of the weight by
    ``conv3x3_weight_gradient``, which have the errors. The gradient of the input is PyTorch's if
    ``F`` is no multiple of 32. There are first derivatives only.

    Args:
        input: ``[N, F, H, W]``; ``F`` is a multiple of 16. float32, or float64 for the reference
            implementation.
        weight: ``[O, F, 3, 3]`` of the same dtype; ``O`` is a multiple of 32.
        bias: ``[O]`` or None.
        transform: such as a ``TransformedWeight``.

    Returns:
        ``[N, O, H, W]``, channels-last; empty if the input is.

    Raises:
        RuntimeError, ValueError: as ``conv3x3`` and ``transform_conv3x3_weight``.
    """
    return _WinogradConv2d.apply(input, weight, bias, transform)


class _WinogradConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transform: Callable[[Tensor, bool], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.transform = transform
        return _convolve(input, transform(weight, False), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        for_input, for_weight, for_bias, _ = ctx.needs_input_grad
        grad_input = grad_weight = grad_bias = None
        if for_input and can_conv3x3(weight.transpose(0, 1)):
            grad_input = _convolve(grad, ctx.transform(weight, True), None)
        elif for_input:
            grad_input = conv2d_input(input.shape, weight, grad, padding=1)
        if for_weight:
            in_float32 = input.dtype == torch.float32
            gradient = conv3x3_weight_gradient if in_float32 else reference.conv3x3_weight_gradient
            grad_weight = gradient(input, grad)
        if for_bias:
            grad_bias = grad.sum((0, 2, 3))
        return grad_input, grad_weight, grad_bias, None


def _convolve(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if input.dtype == torch.float32:
        return conv3x3(input, weight, bias)
    bias = weight.new_zeros(weight.shape[1] * weight.shape[3]) if bias is None else bias
    return reference.conv3x3(input, weight, bias, False)
