"""Winograd's weight gradient against PyTorch's in float64.

Errors are relative: L2 norm of the difference by that of the float64 result.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import reference
from tests.ops.test_conv3x3 import TOLERANCE, relative_error

OP = torch.ops.maskrcnn_scratch.conv3x3_weight_gradient


def maps(*shape: int, out_channels: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Input ``shape``, and the gradient of the outputs."""
    generator = torch.Generator().manual_seed(seed)
    images, _, height, width = shape
    input = torch.randn(shape, generator=generator)
    return input, torch.randn(images, out_channels, height, width, generator=generator)


def exact(input: Tensor, grad: Tensor) -> Tensor:
    size = grad.shape[1], input.shape[1], 3, 3
    return torch.nn.grad.conv2d_weight(input.double(), size, grad.double(), padding=1)


# 1 x 1; tiles that reach outside the map; several blocks of 128 tiles, in parts of one group of
# 2048 tiles, a group that is full, and two groups.
SHAPES = [(1, 16, 1, 1), (1, 16, 1, 37), (2, 32, 37, 1), (3, 48, 5, 6), (1, 64, 33, 41),
          (2, 64, 64, 64), (1, 16, 91, 93)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_close_to_float64(shape: tuple[int, ...]) -> None:
    input, grad = maps(*shape, out_channels=96)
    expected = exact(input, grad)
    found = ops.conv3x3_weight_gradient(input, grad)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    # 2.3e-7 to 3.3e-7 were measured with up to 240,000 locations.
    assert relative_error(found, expected) < TOLERANCE[2]
    by_reference = reference.conv3x3_weight_gradient(input, grad)
    assert relative_error(by_reference, expected) < 5 * TOLERANCE[2]  # sums as BLAS orders them


def test_error_does_not_grow_with_the_number_of_locations() -> None:
    """57,600 tiles: 9e-8 was measured, and 5e-7 where the sums of all blocks are one chain."""
    input, grad = (x.abs() for x in maps(1, 16, 480, 480))
    found = ops.conv3x3_weight_gradient(input, grad)
    assert relative_error(found, exact(input, grad)) < 2e-7


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 3),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.integers(1, 4),
    panels=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_any_size(
    images: int, height: int, width: int, channels: int, panels: int, seed: int
) -> None:
    shape = images, 16 * channels, height, width
    input, grad = maps(*shape, out_channels=32 * panels, seed=seed)
    found = ops.conv3x3_weight_gradient(input, grad)
    assert relative_error(found, exact(input, grad)) < TOLERANCE[2]


def test_the_algorithm_is_exact() -> None:
    """In float64, what is left is float64's rounding: the matrices are the right ones."""
    input, grad = (x.double() for x in maps(2, 32, 11, 13))
    found = reference.conv3x3_weight_gradient(input, grad)
    assert relative_error(found, exact(input, grad)) < 1e-14


def test_same_bits_for_any_number_of_threads() -> None:
    input, grad = maps(2, 64, 72, 70, out_channels=64)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(ops.conv3x3_weight_gradient(input, grad))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_same_bits_in_any_memory_format() -> None:
    input, grad = maps(2, 32, 12, 11)
    expected = ops.conv3x3_weight_gradient(input, grad)
    strided = torch.randn(2, 64, 24, 11)[:, ::2, ::2].copy_(input)
    for other in (input.contiguous(memory_format=torch.channels_last), strided):
        assert torch.equal(ops.conv3x3_weight_gradient(other, grad), expected)
    expanded = torch.ones(1, 1, 1, 1).expand(2, 32, 12, 11)  # as the gradient of a sum is
    found = ops.conv3x3_weight_gradient(input, expanded)
    assert torch.equal(found, ops.conv3x3_weight_gradient(input, expanded.contiguous()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_stay_in_their_channels(bad: float) -> None:
    input, grad = maps(1, 16, 9, 10)
    expected = ops.conv3x3_weight_gradient(input, grad)
    reached = torch.zeros_like(expected, dtype=torch.bool)
    reached[:, 3] = reached[5] = True
    input[0, 3, 4, 4] = grad[0, 5, 8, 9] = bad
    found = ops.conv3x3_weight_gradient(input, grad)
    assert torch.equal(found[~reached], expected[~reached])
    assert not found[reached].isfinite().any()


@pytest.mark.parametrize("shape", [(0, 16, 5, 5), (2, 16, 0, 5), (2, 16, 5, 0)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    for of in (ops, reference):
        found = of.conv3x3_weight_gradient(*maps(*shape))
        assert found.shape == (32, 16, 3, 3) and not found.any()


@pytest.mark.parametrize("images", [0, 2])
def test_opcheck(images: int) -> None:
    torch.library.opcheck(OP, maps(images, 16, 6, 7))


def test_autocast_computes_in_float32() -> None:
    input, grad = (x.bfloat16() for x in maps(1, 16, 8, 8))
    expected = ops.conv3x3_weight_gradient(input.float(), grad.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.conv3x3_weight_gradient(input, grad), expected)


def test_errors_name_the_argument() -> None:
    input, grad = maps(1, 16, 8, 8)
    wide = torch.zeros(1, 1, 1, 1).expand(1, 2**30, 8, 8)
    for arguments, message in [
        ((input[0], grad), r"input must be \[N, F, H, W\], not \[16, 8, 8\]"),
        ((input.double(), grad), "input must be Float, not Double"),
        ((input, grad[0]), r"grad must be \[N, O, H, W\], not \[32, 8, 8\]"),
        ((input, grad.double()), "grad must be Float, not Double"),
        ((input, grad[:, :, 1:]), r"size of input, \[1, 16, 8, 8\], not \[1, 32, 7, 8\]"),
        ((input[:0], grad), r"the images and the size of input, \[0, 16, 8, 8\]"),
        ((input[:, :8], grad), "in_channels must be a multiple of 16, not 8"),
        ((input[:, :0], grad), "in_channels must be a multiple of 16, not 0"),
        ((input, grad[:, :16]), "out_channels must be a multiple of 32, not 16"),
        ((input, grad[:, :0]), "out_channels must be a multiple of 32, not 0"),
        ((wide, wide), "the weight's gradient has too many elements"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            OP(*arguments)
