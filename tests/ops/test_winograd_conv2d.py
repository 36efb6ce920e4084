"""Gradients of the Winograd convolution, against those of ``F.conv2d``."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_scratch.ops.winograd_conv2d import TransformedWeight, winograd_conv2d
from tests.ops.test_conv3x3 import TOLERANCE, layer, relative_error

TILES = (2, 4)


def gradients(output: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of a loss in which every output has another weight."""
    factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad((output * factors.to(output)).sum(), inputs))


@pytest.mark.parametrize("m", TILES)
@pytest.mark.parametrize("channels", [16, 32])  # 16: PyTorch computes the gradient of the input
def test_gradcheck(channels: int, m: int) -> None:
    arguments = [x.double().requires_grad_() for x in layer(2, channels, 3, 5)]
    transform = TransformedWeight(m).transform  # checks write into the weight's memory

    def convolve(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return winograd_conv2d(input, weight, bias, transform)

    assert torch.autograd.gradcheck(convolve, arguments, fast_mode=True)


@pytest.mark.parametrize("m", TILES)
@pytest.mark.parametrize("shape", [(2, 32, 13, 17), (1, 48, 30, 9)], ids=str)
def test_float32_is_as_close_to_float64_as_the_op(shape: tuple[int, ...], m: int) -> None:
    arguments = [x.requires_grad_() for x in layer(*shape, out_channels=64)]
    exact = [x.detach().double().requires_grad_() for x in arguments]
    expected = F.conv2d(*exact, padding=1)
    found = winograd_conv2d(*arguments, TransformedWeight(m))
    # A weight transformed in float32 has the error of a sum of 9 float32 products more than the
    # rounded one that TOLERANCE was measured with.
    tolerance = 1.5 * TOLERANCE[m]
    assert relative_error(found, expected) < tolerance
    of_input, of_weight, of_bias = zip(
        gradients(found, *arguments), gradients(expected, *exact), strict=True
    )
    assert relative_error(*of_input) < tolerance
    assert relative_error(*of_weight) < TOLERANCE[2]  # for every m
    assert relative_error(*of_bias) < 1e-6  # PyTorch's sum over all locations


def test_only_what_is_needed_has_a_gradient() -> None:
    input, weight, bias = layer(1, 32, 6, 6)
    weight.requires_grad_()
    output = winograd_conv2d(input, weight, bias, TransformedWeight(4))
    output.sum().backward()
    assert weight.grad is not None and input.grad is None and bias.grad is None
    frozen = weight.detach()
    input.requires_grad_()
    winograd_conv2d(input, frozen, None, TransformedWeight(4)).sum().backward()
    expected = F.conv_transpose2d(torch.ones(1, 32, 6, 6).double(), frozen.double(), padding=1)
    assert input.grad is not None
    assert relative_error(input.grad, expected) < 1.5 * TOLERANCE[4]


def test_empty_input() -> None:
    input, weight, bias = (x.requires_grad_() for x in layer(0, 32, 5, 5))
    output = winograd_conv2d(input, weight, bias, TransformedWeight(2))
    assert output.shape == (0, 32, 5, 5)
    for gradient, of in zip(gradients(output, input, weight), (input, weight), strict=True):
        assert gradient.shape == of.shape and not gradient.any()


def test_a_changed_weight_is_transformed_anew() -> None:
    input, weight, bias = layer(1, 32, 6, 6)
    transform = TransformedWeight(2)
    kept = transform(weight, False)
    assert transform(weight, False) is kept
    transposed = transform(weight, True)
    assert transform(weight, True) is transposed and transform(weight, False) is kept
    for change in (lambda: weight.mul_(2), lambda: weight.copy_(weight + 1)):
        change()
        expected = F.conv2d(input, weight, bias, padding=1).double()
        assert relative_error(winograd_conv2d(input, weight, bias, transform), expected) < 1e-5
    assert relative_error(transform(weight.clone(), False), transform(weight, False).double()) == 0
    assert not copy.deepcopy(transform).kept


def test_weights_without_a_version() -> None:
    with torch.inference_mode():
        input, weight, bias = layer(1, 32, 6, 6)
        transform = TransformedWeight(2)
        before = winograd_conv2d(input, weight, bias, transform)
        weight.mul_(2)
        bias.mul_(2)
        after = winograd_conv2d(input, weight, bias, transform)
    assert relative_error(after, 2 * before.double()) < 1e-6
