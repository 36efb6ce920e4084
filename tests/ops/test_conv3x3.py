"""Winograd convolutions against ``F.conv2d`` in float64, and against the reference implementation.

Errors are relative: L2 norm of the difference by that of the float64 result.
"""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops.reference.conv3x3 import POINTS, matrices, outputs_per_axis

OP = torch.ops.maskrcnn_scratch.conv3x3
TILES = (2, 4)

# An error of 2.4e-7 (m = 2) and 6.8e-7 (m = 4) was measured with 64 to 512 channels: that of one
# float32 rounding, 3e-8 of the result in the mean, grown by additions in chains of 64 and by the
# transforms. Twice that leaves room for other orders of the additions (without fused products).
TOLERANCE = {2: 5e-7, 4: 1.4e-6}


def layer(*shape: int, out_channels: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Input ``shape``, weight and bias of a convolution whose outputs are about 1."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]
    input = torch.randn(shape, generator=generator)
    weight = torch.randn(out_channels, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    return input, weight, torch.randn(out_channels, generator=generator)


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, m: int, **options) -> Tensor:
    return ops.conv3x3(input, ops.transform_conv3x3_weight(weight, m), bias, **options)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


# 1 x 1 to several blocks of tiles; 5 x 6 has tiles that reach outside the map.
SHAPES = [(1, 16, 1, 1), (1, 16, 1, 37), (2, 32, 37, 1), (3, 48, 5, 6), (1, 64, 33, 41),
          (2, 256, 14, 14), (1, 512, 9, 13)]  # fmt: skip


@pytest.mark.parametrize("m", TILES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_close_to_float64(shape: tuple[int, ...], m: int) -> None:
    input, weight, bias = layer(*shape, out_channels=96)
    expected = F.conv2d(input.double(), weight.double(), bias.double(), padding=1)
    found = convolve(input, weight, bias, m)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(found, expected) < TOLERANCE[m]
    by_reference = reference.conv3x3(input, ops.transform_conv3x3_weight(weight, m), bias, False)
    assert relative_error(by_reference, expected) < 2 * TOLERANCE[m]  # sums as BLAS orders them


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 3),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.integers(1, 4),
    panels=st.integers(1, 2),
    m=st.sampled_from(TILES),
    seed=st.integers(0, 2**31),
)
def test_any_size(
    images: int, height: int, width: int, channels: int, panels: int, m: int, seed: int
) -> None:
    shape = images, 16 * channels, height, width
    input, weight, bias = layer(*shape, out_channels=32 * panels, seed=seed)
    expected = F.conv2d(input.double(), weight.double(), bias.double(), padding=1)
    assert relative_error(convolve(input, weight, bias, m), expected) < TOLERANCE[m]


@pytest.mark.parametrize("m", TILES)
def test_the_algorithm_is_exact(m: int) -> None:
    """In float64, what is left is float64's rounding: the matrices are the right ones."""
    input, weight, bias = (tensor.double() for tensor in layer(2, 32, 11, 13))
    found = reference.conv3x3(input, ops.transform_conv3x3_weight(weight, m), bias, False)
    assert relative_error(found, F.conv2d(input, weight, bias, padding=1)) < 1e-14


@pytest.mark.parametrize("m", TILES)
def test_matrices(m: int) -> None:
    """``A^T [(G g) * (B^T d)]`` is a correlation, for every pair of unit vectors."""
    a, g, b = matrices(m)
    terms = torch.einsum("yt,tk,td->ykd", a, g, b)
    expected = torch.zeros(m, 3, m + 2, dtype=torch.float64)
    for y in range(m):
        for k in range(3):
            expected[y, k, y + k] = 1
    torch.testing.assert_close(terms, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("m", TILES)
def test_points_are_exact_in_float32(m: int) -> None:
    for matrix in matrices(m)[::2]:
        assert torch.equal(matrix, matrix.float().double())
    assert len({Fraction(0), *POINTS[m]}) == m + 1


@pytest.mark.parametrize("m", TILES)
def test_relu_and_bias(m: int) -> None:
    input, weight, bias = layer(1, 32, 9, 10)
    with_bias = convolve(input, weight, bias, m)
    assert torch.equal(convolve(input, weight, bias, m, relu=True), with_bias.relu())
    without = convolve(input, weight, None, m)
    assert torch.equal(without + bias[:, None, None], with_bias)


@pytest.mark.parametrize("m", TILES)
def test_same_bits_for_any_number_of_threads(m: int) -> None:
    input, weight, bias = layer(2, 64, 40, 50, out_channels=64)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(convolve(input, weight, bias, m))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("m", TILES)
def test_same_bits_in_any_batch(m: int) -> None:
    input, weight, bias = layer(7, 64, 14, 14, out_channels=64)
    batch = convolve(input, weight, bias, m)
    for n in range(len(input)):
        assert torch.equal(convolve(input[n : n + 1], weight, bias, m), batch[n : n + 1])


@pytest.mark.parametrize("m", TILES)
def test_same_bits_in_any_memory_format(m: int) -> None:
    input, weight, bias = layer(2, 32, 12, 11, out_channels=64)
    expected = convolve(input, weight, bias, m)
    strided = torch.randn(2, 64, 24, 11)[:, ::2, ::2].copy_(input)
    for other in (input.contiguous(memory_format=torch.channels_last), strided):
        assert torch.equal(convolve(other, weight, bias, m), expected)
    transformed = ops.transform_conv3x3_weight(weight, m)
    transposed = transformed.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(ops.conv3x3(input, transposed, bias.repeat(2)[::1][:64]), expected)
    assert torch.equal(ops.conv3x3(input, transformed, bias.repeat_interleave(2)[::2]), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("m", TILES)
def test_nan_and_infinity_spread_over_tiles_and_no_further(m: int, bad: float) -> None:
    input, weight, bias = layer(2, 16, 16, 20)
    expected = convolve(input, weight, bias, m, relu=True)
    y, x = 2 * m, 2 * m  # read by the tile it is in and, as a neighbour, by those before it
    input[0, 3, y, x] = bad
    found = convolve(input, weight, bias, m, relu=True)
    reached = torch.zeros_like(found, dtype=torch.bool)
    reached[0, :, y - m : y + m, x - m : x + m] = True
    assert torch.equal(found[~reached], expected[~reached])
    direct = F.conv2d(input, weight, bias, padding=1)
    assert not found[0, :, y - 1 : y + 2, x - 1 : x + 2].isfinite().all()
    assert not (direct.isnan() & found.isfinite() & (found > 0)).any()


def test_weight_with_nan_reaches_its_channel_alone() -> None:
    input, weight, bias = layer(1, 16, 8, 8)
    expected = convolve(input, weight, bias, 4)
    weight[5, 0, 1, 1] = torch.nan
    found = convolve(input, weight, bias, 4)
    assert found[:, 5].isnan().all()
    rest = [channel for channel in range(32) if channel != 5]
    assert torch.equal(found[:, rest], expected[:, rest])


@pytest.mark.parametrize("m", TILES)
@pytest.mark.parametrize("shape", [(0, 16, 5, 5), (2, 16, 0, 5), (2, 16, 5, 0)], ids=str)
def test_empty(shape: tuple[int, ...], m: int) -> None:
    input, weight, bias = layer(*shape)
    transformed = ops.transform_conv3x3_weight(weight, m)
    expected = (shape[0], 32, *shape[2:])
    assert ops.conv3x3(input, transformed, bias).shape == expected
    assert reference.conv3x3(input, transformed, bias, True).shape == expected


@pytest.mark.parametrize("m", TILES)
@pytest.mark.parametrize("images", [0, 2])
def test_opcheck(images: int, m: int) -> None:
    input, weight, bias = layer(images, 16, 6, 7)
    torch.library.opcheck(OP, (input, ops.transform_conv3x3_weight(weight, m), bias, True))


def test_autocast_computes_in_float32() -> None:
    input, weight, bias = layer(1, 16, 8, 8)
    expected = convolve(input.bfloat16().float(), weight, bias, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(convolve(input.bfloat16(), weight, bias, 2), expected)


def test_compiles_and_exports() -> None:
    input, weight, bias = layer(2, 16, 9, 8)
    transformed = ops.transform_conv3x3_weight(weight, 4)
    expected = ops.conv3x3(input, transformed, bias, True)

    class Layer(torch.nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return ops.conv3x3(input, transformed, bias, True)

    compiled = torch.compile(Layer(), backend="aot_eager", fullgraph=True, dynamic=True)
    assert torch.equal(compiled(input), expected)
    height = torch.export.Dim("H", min=2, max=500)
    exported = torch.export.export(Layer(), (input,), dynamic_shapes=({2: height},)).module()
    assert torch.equal(exported(input), expected)
    assert torch.equal(exported(input[:, :, :5]), Layer()(input[:, :, :5]))


def results() -> list[Tensor]:
    """Outputs and gradients of weights that reach full and partial blocks and chains."""
    shapes = (1, 48, 13, 17), (2, 144, 14, 14)
    outputs = [convolve(*layer(*s, out_channels=64), m, relu=True) for s in shapes for m in TILES]
    maps = [(layer(*s)[0], layer(s[0], 64, *s[2:])[0]) for s in (*shapes, (3, 16, 40, 37))]
    return outputs + [ops.conv3x3_weight_gradient(input, grad) for input, grad in maps]


SAVE = """
import sys, torch
from tests.ops.test_conv3x3 import results
torch.save(results(), sys.argv[1])
"""


@pytest.mark.slow
def test_instruction_sets(tmp_path: Path) -> None:
    """AVX2 and AVX-512 have the same bits; the baseline rounds products apart from sums."""
    found = {}
    for isa in ("baseline", "avx2", "avx512"):
        subprocess.run(
            [sys.executable, "-c", SAVE, str(tmp_path / isa)],
            env={**os.environ, "MASKRCNN_ISA": isa},
            check=True,
        )
        found[isa] = torch.load(tmp_path / isa)
    for baseline, avx2, avx512 in zip(*found.values(), strict=True):
        assert torch.equal(avx2, avx512)
        assert relative_error(baseline, avx2.double()) < 2 * TOLERANCE[4]


def test_errors_name_the_argument() -> None:
    input, weight, bias = layer(1, 16, 8, 8)
    transformed = ops.transform_conv3x3_weight(weight, 2)
    assert outputs_per_axis(transformed) == 2
    for arguments, message in [
        ((input[0], transformed, bias), r"input must be \[N, F, H, W\], not \[16, 8, 8\]"),
        ((input.double(), transformed, bias), "input must be Float, not Double"),
        ((input, weight, bias), r"weight must be transformed, \[16 or 36, .*not \[32, 16, 3, 3\]"),
        ((input, transformed[:9], bias), r"not \[9, 1, 16, 32\]"),
        ((input, transformed.double(), bias), "weight must be Float, not Double"),
        ((input[:, :8], transformed, bias), "input has 8 channels, but weight has in_channels 16"),
        (
            (input[:, :8], transformed[:, :, :8], bias),
            "in_channels must be a multiple of 16, not 8",
        ),
        (
            (input[:, :0], transformed[:, :, :0], bias),
            "in_channels must be a multiple of 16, not 0",
        ),
        ((input, transformed[:, :0], bias[:0]), "out_channels must be positive"),
        ((input, transformed, bias[:5]), r"bias must be \[32\], not \[5\]"),
        ((input, transformed, bias[None]), r"bias must be \[32\], not \[1, 32\]"),
        ((input, transformed, bias.double()), "bias must be Float, not Double"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            OP(*arguments, False)
    with pytest.raises(ValueError, match="m must be 2 or 4, not 3"):
        ops.transform_conv3x3_weight(weight, 3)
    with pytest.raises(ValueError, match=r"weight must be \[O, F, 3, 3\] .*not \[16, 16, 3, 3\]"):
        ops.transform_conv3x3_weight(weight[:16], 2)
