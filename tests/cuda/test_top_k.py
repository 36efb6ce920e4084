"""CUDA top-k: the indices of the CPU kernel, ties included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch.ops._library import kernels

pytestmark = pytest.mark.slow


def check(cuda, values: Tensor, level_sizes: list[int], k: int) -> Tensor:
    ours = cuda("top_k_of_levels")(values, level_sizes, k)
    assert torch.equal(ours, kernels.top_k_of_levels(values, level_sizes, k))
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 50, 700])
def test_random(cuda, k, dtype):
    sizes = [9_000, 257, 256, 1, 0, 63]  # the first has several slices
    check(cuda, torch.randn(2, sum(sizes), dtype=dtype), sizes, k)


def test_several_digits_decide(cuda):
    """Values that share 0, 12, 24 and all bits; in float64 up to 60."""
    for dtype, steps in ((torch.float32, (1e-2, 1e-5, 1e-7)), (torch.float64, (1e-5, 1e-9, 2e-16))):
        for step in steps:
            values = 1 + step * torch.randint(500, (1, 1000)).to(dtype)
            check(cuda, values, [900, 100], 70)
            check(cuda, -values, [900, 100], 70)


@pytest.mark.parametrize("k", [3, 400, 2000])
def test_all_values_are_equal(cuda, k):
    check(cuda, torch.zeros(1, 2000), [2000], k)


def test_nan_infinity_and_zeros(cuda):
    values = torch.randn(2, 600)
    values[:, ::7] = math.nan
    values[:, 1::7] = -math.nan
    values[0, 2::7] = math.inf
    values[1, 2::5] = -math.inf
    values[:, 3::9] = 0.0
    values[:, 4::9] = -0.0
    for k in (20, 200, 600):
        check(cuda, values, [350, 250], k)
    check(cuda, torch.tensor([[-0.0, 0.0, -1e-45, 1e-45] * 9]), [36], 20)


def test_empty(cuda):
    assert check(cuda, torch.zeros(0, 9), [4, 5], 3).shape == (0, 6)
    assert check(cuda, torch.zeros(2, 0), [], 3).shape == (2, 0)
    assert check(cuda, torch.zeros(2, 9), [4, 5], 0).shape == (2, 0)


def test_any_strides(cuda):
    check(cuda, torch.randn(900, 2).t(), [900], 30)
    check(cuda, torch.randn(1, 901)[:, 1:].expand(3, 900), [500, 400], 30)


def test_bad_arguments(cuda):
    top_k = cuda("top_k_of_levels")
    with pytest.raises(RuntimeError, match="level_sizes add up to 8, but values is"):
        top_k(torch.zeros(2, 9), [4, 4], 3)
    with pytest.raises(RuntimeError, match="there are 17 levels, CUDA takes up to 16"):
        top_k(torch.zeros(2, 17), [1] * 17, 3)
    with pytest.raises(RuntimeError, match="values must be float32 or float64"):
        top_k(torch.zeros(2, 9, dtype=torch.int64), [9], 3)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    values=st.lists(
        st.one_of(st.floats(width=32), st.sampled_from([0.0, 1.0])), min_size=1, max_size=90
    ),
    cut=st.floats(0, 1),
    k=st.integers(1, 100),
)
def test_any_values(cuda, values, cut, k):
    size = int(cut * len(values))
    check(cuda, torch.tensor([values]), [size, len(values) - size], k)
