"""The kernel selects what ``torch.topk`` does, and breaks ties evenly over the indices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import reference

OP = torch.ops.maskrcnn_scratch.top_k_of_levels


def by_sorting(values: Tensor, level_sizes: list[int], k: int) -> Tensor:
    """NaN is the largest; ties are broken by the index times a constant, modulo 2**64."""
    selected, start = [], 0
    for level in values.split(level_sizes, dim=1):
        size = level.shape[1]
        scattered = sorted(range(size), key=lambda i: i * 0x9E3779B97F4A7C15 % 2**64)
        shuffle = torch.tensor(scattered, dtype=torch.int64)
        order = level[:, shuffle].sort(dim=1, descending=True, stable=True).indices
        selected.append(shuffle[order[:, :k]] + start)
        start += size
    return torch.cat(selected, dim=1)


# Levels around the sizes at which the first pass has more than one value per block.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [0, 1, 7, 50, 10_000])
@pytest.mark.parametrize("images", [1, 3])
def test_equals_topk(images: int, k: int, dtype: torch.dtype) -> None:
    sizes = [9_000, 257, 256, 255, 1, 0]
    values = torch.randn(images, sum(sizes), dtype=dtype)
    ours = ops.top_k_of_levels(values, sizes, k)
    assert torch.equal(ours, reference.top_k_of_levels(values, sizes, k))
    assert torch.equal(ours, by_sorting(values, sizes, k))


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 3_000),
    k=st.integers(1, 60),
    different=st.integers(1, 200),
    seed=st.integers(0, 2**31),
)
def test_ties_and_nan(size: int, k: int, different: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(different, (2, size), generator=generator).float()
    values[values == 7] = torch.nan
    values[values == 6] = torch.inf
    values[values == 5] = -torch.inf
    values[values == 4] = -0.0
    levels = [size // 3, size - size // 3]
    assert torch.equal(ops.top_k_of_levels(values, levels, k), by_sorting(values, levels, k))


def test_ties_are_broken_evenly_over_the_indices() -> None:
    (selected,) = ops.top_k_of_levels(torch.zeros(1, 100_000), [100_000], 1_000)
    gaps = selected.sort().values.diff()
    assert len(selected.unique()) == 1_000
    assert gaps.max() < 300  # 100 on average


def test_strided_values() -> None:
    values = torch.randn(4_000, 2).t()
    assert torch.equal(ops.top_k_of_levels(values, [4_000], 30), values.topk(30).indices)


@pytest.mark.parametrize("graph", ["compiled", "traced"])
def test_the_reference_runs_in_graphs(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(2, 500)
    expected = ops.top_k_of_levels(values, [300, 200], 20)
    monkeypatch.setattr(torch.ops.maskrcnn_scratch, "top_k_of_levels", None)
    if graph == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        select = ops.top_k_of_levels
    else:
        traced = torch.jit.trace(
            lambda x: ops.top_k_of_levels(x, [300, 200], 20), values, check_trace=False
        )
        select = lambda values, *_: traced(values)
    assert torch.equal(select(values, [300, 200], 20), expected)


@pytest.mark.parametrize("k", [0, 3, 100])
def test_opcheck(k: int) -> None:
    torch.library.opcheck(OP, (torch.randn(2, 40), [30, 10], k))


def test_errors_name_the_argument() -> None:
    values = torch.randn(2, 40)
    with pytest.raises(RuntimeError, match=r"values must be \[N, A\], not \[40\]"):
        ops.top_k_of_levels(values[0], [40], 3)
    with pytest.raises(RuntimeError, match=r"level_sizes add up to 39, but values is \[2, 40\]"):
        ops.top_k_of_levels(values, [30, 9], 3)
    with pytest.raises(RuntimeError, match="level_sizes must not be negative, one is -1"):
        ops.top_k_of_levels(values, [41, -1], 3)
    with pytest.raises(RuntimeError, match="k must not be negative, it is -3"):
        ops.top_k_of_levels(values, [40], -3)
    with pytest.raises(RuntimeError, match="values must be float32 or float64"):
        ops.top_k_of_levels(values.long(), [40], 3)
