"""CUDA RoIAlign: forward bit-equal to the CPU kernel, both backward kernels close to it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch.ops._library import kernels
from tests.ops.inputs import random_rois

pytestmark = pytest.mark.slow

SIZES = [(20, 30), (10, 15)]  # of two levels
SCALES = [0.25, 0.125]
TOLERANCE = {  # sums in another order; half types round the sum of a pixel once
    torch.float32: 2e-5,
    torch.float64: 1e-13,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
DTYPES = list(TOLERANCE)


def features(
    channels: int, dtype: torch.dtype, channels_last: bool, images: int = 2
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(channels)
    maps = [torch.randn(images, channels, h, w, generator=generator).to(dtype) for h, w in SIZES]
    if channels_last:
        maps = [map.contiguous(memory_format=torch.channels_last) for map in maps]
    return maps


def inputs(count: int, dtype: torch.dtype, images: int = 2) -> tuple[Tensor, Tensor]:
    rois = random_rois(count, images, 80, 120).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    return rois, torch.arange(count) % 2


def check_forward(cuda, arguments) -> Tensor:
    ours, cpu = (
        op(*arguments) for op in (cuda("multiscale_roi_align"), kernels.multiscale_roi_align)
    )
    assert ours.stride() == cpu.stride()
    assert torch.equal(ours.nan_to_num(), cpu.nan_to_num())
    return ours


def check_backward(cuda, arguments, dtype: torch.dtype, deterministic: bool) -> list[Tensor]:
    ours = cuda("multiscale_roi_align_backward")(*arguments, deterministic)
    cpu = kernels.multiscale_roi_align_backward(*arguments, True)
    for one, other in zip(ours, cpu, strict=True):
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 6, 72])  # one, no vectors, vectors and two blocks
def test_forward(cuda, dtype, channels):
    rois, levels = inputs(8, dtype)
    for channels_last, (ratio, aligned) in itertools.product(
        (False, True), ((2, False), (0, True), (3, True))
    ):
        maps = features(channels, dtype, channels_last)
        for output_channels_last in (False, True):
            sizes = (7, 5) if ratio else (11, 9)  # the latter: more than one block of bins
            arguments = (maps, rois, levels, SCALES, *sizes, ratio, aligned, output_channels_last)
            assert check_forward(cuda, arguments).abs().sum() > 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_more_channels_than_threads_and_more_samples_than_the_tables_hold(cuda, channels_last):
    rois, levels = inputs(3, torch.float32)
    rest = (SCALES, 5, 3, 2, False, channels_last)
    check_forward(cuda, (features(1100, torch.float32, True), rois, levels, *rest))
    rest = (SCALES, 66, 2, 2, False, channels_last)
    check_forward(cuda, (features(8, torch.float32, True), rois, levels, *rest))


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [3, 72])
def test_backward(cuda, dtype, channels, deterministic):
    rois, levels = inputs(11, dtype)  # more than one batch touch a tile
    for channels_last, (ratio, aligned, size) in itertools.product(
        (False, True), ((2, False, (7, 5)), (0, True, (18, 4)))
    ):
        grad = torch.randn(11, channels, *size, generator=torch.Generator().manual_seed(1))
        sizes = ([h for h, _ in SIZES], [w for _, w in SIZES])
        arguments = (
            grad.to(dtype), rois, levels, SCALES, *sizes, 2, ratio, aligned, channels_last,
        )  # fmt: skip
        grads = check_backward(cuda, arguments, dtype, deterministic)
        if deterministic:
            again = cuda("multiscale_roi_align_backward")(*arguments, True)
            assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


def test_backward_of_more_rois_than_a_list_holds(cuda):
    """2,100 RoIs, of which most tiles meet few; a third is on the coarse level."""
    rois, levels = inputs(2100, torch.float32)
    levels = (torch.arange(2100) % 3 == 0).long()
    rois[:, 3:] = torch.minimum(rois[:, 3:], rois[:, 1:3] + 20)
    rest = (rois, levels, SCALES, *zip(*SIZES, strict=True), 2, 2, False, True)
    grads = check_backward(cuda, (torch.ones(2100, 1, 2, 2), *rest), torch.float32, True)
    again = cuda("multiscale_roi_align_backward")(torch.ones(2100, 1, 2, 2), *rest, True)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


def test_backward_is_the_transpose_of_forward(cuda):
    """<forward(f), g> == <f, backward(g)>, in float64."""
    rois, levels = inputs(6, torch.float64)
    maps = features(5, torch.float64, True)
    pooled = cuda("multiscale_roi_align")(maps, rois, levels, SCALES, 4, 3, 0, False, False)
    grad = torch.randn(pooled.shape, dtype=torch.float64)
    for deterministic in (False, True):
        grads = cuda("multiscale_roi_align_backward")(
            grad, rois, levels, SCALES, *zip(*SIZES, strict=True), 2, 0, False, True, deterministic
        )
        spread = sum((m * g).sum() for m, g in zip(maps, grads, strict=True))
        torch.testing.assert_close(spread, (pooled * grad).sum(), rtol=1e-12, atol=1e-12)


AWKWARD = [
    [math.nan] * 4,
    [0, 0, math.inf, 10],
    [-math.inf, -math.inf, math.inf, math.inf],
    [5, 5, 5, 5],
    [40, 30, 10, 8],  # reversed
    [-1e9, -1e9, 1e9, 1e9],
    [-500, -400, 900, 700],  # adaptive: more samples than the table holds
    [1e30, 0, 2e30, 5],
    [119.9, 79.9, 130, 90],
]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_awkward_boxes(cuda, ratio, aligned):
    boxes = torch.tensor([[index % 2, *box] for index, box in enumerate(AWKWARD)])
    levels = torch.zeros(len(boxes), dtype=torch.int64)
    maps = features(4, torch.float32, True)
    check_forward(cuda, (maps, boxes, levels, SCALES, 3, 3, ratio, aligned, False))
    for deterministic in (False, True):
        grad = torch.randn(len(boxes), 4, 3, 3)
        arguments = (
            grad,
            boxes,
            levels,
            SCALES,
            *zip(*SIZES, strict=True),
            2,
            ratio,
            aligned,
            True,
        )
        check_backward(cuda, arguments, torch.float32, deterministic)


def test_indices_out_of_range_give_zeros(cuda):
    rois, levels = inputs(6, torch.float32)
    rois[0, 0], rois[1, 0], rois[2, 0] = 2, -1, math.nan
    levels[3], levels[4] = 2, -(2**40)
    maps = features(4, torch.float32, True)
    ours = cuda("multiscale_roi_align")(maps, rois, levels, SCALES, 2, 2, 2, False, False)
    valid = (maps, rois[5:], levels[5:], SCALES, 2, 2, 2, False, False)
    assert torch.count_nonzero(ours[:5]) == 0
    assert torch.equal(ours[5:], kernels.multiscale_roi_align(*valid))
    rest = (SCALES, *zip(*SIZES, strict=True), 2, 2, False, True)
    expected = kernels.multiscale_roi_align_backward(
        torch.ones(1, 4, 2, 2), rois[5:], levels[5:], *rest, True
    )
    for deterministic in (False, True):
        grads = cuda("multiscale_roi_align_backward")(
            torch.ones(6, 4, 2, 2), rois, levels, *rest, deterministic
        )
        for one, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("channels_last", [False, True])
def test_samples_outside_the_map_are_zero_beside_infinity(cuda, channels_last):
    """They are read at the first pixel, with weights of zero."""
    maps = [torch.full((1, 4, 3, 5), math.inf)]
    if channels_last:
        maps[0] = maps[0].contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0.0, -20, 0, -10, 2], [0, 0, -9, 4, 3], [1, 0, 0, 2, 2]])
    levels = torch.zeros(3, dtype=torch.int64)
    pooled = cuda("multiscale_roi_align")(maps, rois, levels, [1.0], 2, 2, 2, False, channels_last)
    cpu = kernels.multiscale_roi_align(
        maps, rois[:2], levels[:2], [1.0], 2, 2, 2, False, channels_last
    )
    assert torch.equal(pooled[:2], cpu)
    assert torch.count_nonzero(pooled[[0, 2]]) == 0
    assert pooled[1].isinf().any() and pooled[1].eq(0).any()
    none = [maps[0][:0]]
    pooled = cuda("multiscale_roi_align")(none, rois, levels, [1.0], 2, 2, 2, False, channels_last)
    assert torch.count_nonzero(pooled) == 0


def test_checked_mode_raises(cuda, monkeypatch):
    monkeypatch.setenv("MASKRCNN_CHECKED", "1")
    maps = features(4, torch.float32, True)
    rois, levels = inputs(3, torch.float32)
    cuda("multiscale_roi_align")(maps, rois, levels, SCALES, 2, 2, 2, False, False)
    rois[1, 0] = 7
    with pytest.raises(RuntimeError, match=r"rois\[1\] has batch index 7"):
        cuda("multiscale_roi_align")(maps, rois, levels, SCALES, 2, 2, 2, False, False)
    levels[0] = 5
    with pytest.raises(RuntimeError, match=r"levels\[0\] is 5"):
        cuda("multiscale_roi_align")(maps, rois, levels, SCALES, 2, 2, 2, False, False)


def test_empty(cuda):
    for count, channels in ((0, 4), (3, 0)):
        rois, levels = inputs(count, torch.float32)
        maps = features(channels, torch.float32, True)
        check_forward(cuda, (maps, rois, levels, SCALES, 7, 7, 2, False, False))
        for deterministic in (False, True):
            arguments = (
                torch.ones(count, channels, 7, 7), rois, levels, SCALES, *zip(*SIZES, strict=True),
                2, 2, False, True,
            )  # fmt: skip
            check_backward(cuda, arguments, torch.float32, deterministic)


def test_any_strides(cuda):
    rois, levels = inputs(5, torch.float32)
    levels = torch.zeros_like(levels)
    wide = torch.randn(2, 40, 60, 9).permute(0, 3, 1, 2)
    for map in (
        wide[:, 1:, ::2, ::3],  # channels-last, misaligned
        wide[:, ::2, 3:, 5:],
        torch.randn(2, 8, 1, 30).expand(2, 8, 20, 30),
        torch.randn(1, 8, 20, 30).expand(2, 8, 20, 30),
        torch.randn(20, 8, 2, 30).permute(2, 1, 0, 3),
    ):
        arguments = ([map], rois.flip(1).flip(1), levels, [0.25], 3, 3, 2, False, False)
        check_forward(cuda, arguments)
    grad = torch.randn(1, 4, 1, 3).expand(5, 4, 3, 3)
    for deterministic in (False, True):
        arguments = (grad, rois, levels, [0.25], [20], [30], 2, 2, False, False)
        check_backward(cuda, arguments, torch.float32, deterministic)


def test_storage_that_is_not_aligned(cuda):
    """Channels-last and a multiple of the vector's channels, but the first element is the second of
    its storage: a vector access there is an error on CUDA."""

    def shifted(*shape: int) -> Tensor:
        n, c, h, w = shape
        return torch.randn(1 + n * c * h * w)[1:].view(n, h, w, c).permute(0, 3, 1, 2)

    rois, levels = inputs(5, torch.float32)
    maps = [shifted(2, 8, *size) for size in SIZES]
    assert maps[0].is_contiguous(memory_format=torch.channels_last)
    check_forward(cuda, (maps, rois, levels, SCALES, 3, 3, 2, False, True))
    rest = (rois, levels, SCALES, *zip(*SIZES, strict=True), 2, 2, False, True)
    for deterministic in (False, True):
        check_backward(cuda, (shifted(5, 8, 3, 3), *rest), torch.float32, deterministic)


def test_offsets_beyond_32_bits(cuda):
    """A map of 2.4 G elements, of which next to none are touched."""
    map = torch.from_numpy(np.zeros((1, 1, 40_000, 60_000), np.float16))  # untouched pages
    map[0, 0, 39_000:39_020, 59_000:59_020] = torch.arange(20)
    rois = torch.tensor([[0.0, 59_000, 39_000, 59_019, 39_019]])
    pooled = cuda("multiscale_roi_align")(
        [map], rois, torch.zeros(1, dtype=torch.int64), [1.0], 2, 2, 2, False, False
    )
    small = map[:, :, 39_000:39_020, 59_000:59_020].contiguous()
    expected = kernels.multiscale_roi_align(
        [small], torch.tensor([[0.0, 0, 0, 19, 19]]), torch.zeros(1, dtype=torch.int64), [1.0],
        2, 2, 2, False, False,
    )  # fmt: skip
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_output_beyond_32_bits_on_device():
    """K x C x P x P > 2**31."""
    count, channels = 700_000, 64
    rois = random_rois(1000, 1, 80, 120).repeat(count // 1000, 1).cuda()
    levels = torch.zeros(count, dtype=torch.int64, device="cuda")
    maps = [features(channels, torch.float16, True, images=1)[0].cuda()]
    pooled = kernels.multiscale_roi_align(maps, rois, levels, [0.25], 7, 7, 2, False, False)
    assert pooled.numel() > 2**31
    assert torch.equal(pooled[-1000:], pooled[:1000])
    for deterministic in (False, True):
        (grad,) = kernels.multiscale_roi_align_backward(
            torch.ones_like(pooled), rois, levels, [0.25], [20], [30], 1, 2, False, True,
            deterministic,
        )  # fmt: skip
        assert torch.isfinite(grad.float()).any()


def test_bad_arguments(cuda):
    rois, levels = inputs(2, torch.float32)
    maps = features(4, torch.float32, True)
    with pytest.raises(RuntimeError, match="levels must be"):
        cuda("multiscale_roi_align")(maps, rois, levels[:1], SCALES, 2, 2, 2, False, False)
    with pytest.raises(RuntimeError, match="there are 17 levels, CUDA takes up to 16"):
        cuda("multiscale_roi_align")(maps[:1] * 17, rois, levels, [1.0] * 17, 2, 2, 2, False, False)

    rest = (rois, levels, SCALES, *zip(*SIZES, strict=True), 2, 2, False, True, True)
    backward = cuda("multiscale_roi_align_backward")
    with pytest.raises(RuntimeError, match="grad must have one row per RoI"):
        backward(torch.ones(1, 4, 2, 2), *rest)
    with pytest.raises(RuntimeError, match="output_size must be positive"):
        backward(torch.ones(2, 4, 0, 2), *rest)
    with pytest.raises(RuntimeError, match=r"features\[0\] has no pixels"):
        backward(torch.ones(2, 4, 2, 2), rois, levels, SCALES, [0, 10], [30, 15], *rest[5:])


coordinate = st.one_of(
    st.floats(-200, 300, width=32), st.floats(width=32, allow_nan=True, allow_infinity=True)
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    boxes=st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ratio=st.integers(0, 3),
    aligned=st.booleans(),
    channels=st.integers(1, 9),
)
def test_any_box(cuda, boxes, size, ratio, aligned, channels):
    rois = torch.tensor([[index % 2, *box] for index, box in enumerate(boxes)])
    levels = torch.arange(len(boxes)) % 2
    maps = features(channels, torch.float32, channels % 2 == 0)
    check_forward(cuda, (maps, rois, levels, SCALES, *size, ratio, aligned, True))
