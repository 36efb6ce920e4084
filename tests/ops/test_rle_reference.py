"""The reference implementation of run lengths gives the kernels' texts, values and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import reference
from tests.ops.inputs import random_boxes

KERNELS = torch.ops.maskrcnn_scratch
ENORMOUS = 2**17  # its square has more pixels than the format can count


def outcome(op: Any, *arguments: Any) -> Any:
    """What the op returns, or the text of its ValueError."""
    try:
        return op(*arguments)
    except ValueError as error:
        return f"ValueError: {error}"


def agree(name: str, *arguments: Any) -> Any:
    expected = outcome(getattr(KERNELS, name), *arguments)
    assert outcome(getattr(reference, name), *arguments) == expected
    return expected


def agree_on_text(text: str | bytes, height: int, width: int) -> None:
    """All ops that read a text."""
    if isinstance(agree("rle_area", text, height, width), int):
        zeros = torch.zeros(2, height, width, dtype=torch.uint8)
        KERNELS.rle_decode(text, zeros[0])
        reference.rle_decode(text, zeros[1])
        assert torch.equal(*zeros)
    agree("rle_bounding_box", text, height, width)
    agree("rle_merge", [text], height, width, False)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_masks(mask: np.ndarray) -> None:
    agree_on_text(agree("rle_encode", torch.from_numpy(mask)), *mask.shape)
    agree("rle_encode", torch.from_numpy(mask > 99).view(torch.uint8).T)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=4),
    st.booleans(),
)
def test_merging(runs: list[list[int]], intersect: bool) -> None:
    """Of runs that are empty or alike, too."""
    height, width = 3, -(-max(map(sum, runs)) // 3) or 1
    full = [torch.tensor([*counts, 3 * width - sum(counts)]) for counts in runs]
    texts = [agree("rle_from_counts", counts, height, width) for counts in full]
    assert not agree("rle_merge", texts, height, width, intersect).startswith("ValueError")


@pytest.mark.parametrize("extent", [30.0, 3000.0, 1e6])
def test_polygons(extent: float) -> None:
    rng = np.random.default_rng(0)
    for trial in range(150):
        height, width = map(int, rng.integers(1, 60, 2))
        xy = rng.uniform(-extent, extent, 2 * rng.integers(3, 9)) + 20
        if trial % 3 == 0:
            xy = np.round(xy).clip(-1e6, 1e6)
        if trial % 4 == 0:
            xy[1::4] = xy[1]  # level edges
        if trial % 4 == 1:
            xy[::4] = rng.uniform(0, width)  # upright edges through the image
        if trial % 5 == 0:
            xy[2:4] = xy[:2]  # a point twice
        agree("rle_from_polygon", torch.from_numpy(xy), height, width)


@pytest.mark.parametrize("extent", [30.0, 3000.0])
def test_polygons_of_many_edges(extent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference implementation takes edges in parts, the kernel has a bitmap."""
    monkeypatch.setattr("maskrcnn_scratch.ops.reference.rle.CROSSINGS_AT_ONCE", 1000)
    rng = np.random.default_rng(0)
    for width in (1, 13, 60, 2000):
        xy = torch.from_numpy(rng.uniform(-extent, extent, 2000))
        agree("rle_from_polygon", xy, 37, width)


@pytest.mark.parametrize("hard", [False, True])
def test_soft_masks(hard: bool) -> None:
    masks = torch.rand(40, 14, 14)
    boxes = random_boxes(40, 60, 99) - 20
    boxes[:3] = torch.tensor([[torch.nan, 0, 9, 9], [0, 0, torch.inf, 9], [9, 9, 3, 3]])
    boxes[3:6] = torch.tensor([[0, 0, 1e30, 1e30], [-1e18, 0, 1e18, 9], [0, 0, 3e9, 3e9]])
    masks[6:8] = torch.tensor([torch.nan, torch.inf])[:, None, None]
    masks = masks.round() if hard else masks
    for threshold in (0.3, 0.5):
        texts = agree("rle_paste", masks, boxes, 75, 90, threshold, 2)
    assert len(set(texts)) > 20
    agree("rle_paste", masks[:, :1, :1], boxes, 20, 30, 0.5, 1)
    agree("rle_paste", masks[:0], boxes[:0], 20, 30, 0.5, 1)


@pytest.mark.parametrize("height", [1, 64, 100])
def test_packed_masks(height: int) -> None:
    packed = ops.paste_masks_packed(torch.rand(5, 1, 9, 9), random_boxes(5, 60, 80), (height, 90))
    agree("rle_from_packed", packed, height, 90, 2)
    agree("rle_from_packed", packed[:0], height, 90, 1)


TEXTS = ["", "0", "~", "P", "oooooooo0", "oooooooP", "12", "é", "00000", "1`0", "4O", "o000", "O"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [(2, 3), (0, 3), (ENORMOUS, ENORMOUS)], ids=str)
def test_damaged_texts(text: str, size: tuple[int, int]) -> None:
    agree_on_text(text, *size)
    agree_on_text(text.encode(), *size)


@settings(deadline=None)
@given(st.text(alphabet=[chr(c) for c in range(47, 113)], max_size=12))
def test_any_text(text: str) -> None:
    agree_on_text(text, 4, 3)


def of(*counts: int) -> torch.Tensor:
    return torch.tensor(counts, dtype=torch.int64)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("rle_encode", (torch.zeros(0, 3, dtype=torch.uint8),)),
        ("rle_from_counts", (of(5), 2, 3)),
        ("rle_from_counts", (of(), 2, 3)),
        ("rle_from_counts", (of(6, -1, 1), 2, 3)),
        ("rle_from_counts", (of(2**40, 6), 2, 3)),
        ("rle_from_counts", (of(6), 2, -3)),
        ("rle_from_packed", (torch.zeros(1, 3, 2, dtype=torch.int64), 5, 3, 1)),
        ("rle_from_packed", (torch.zeros(3, 1, dtype=torch.int64), 5, 3, 1)),
        ("rle_from_polygon", (torch.zeros(4).double(), 5, 3)),
        ("rle_from_polygon", (torch.zeros(7).double(), 5, 3)),
        ("rle_from_polygon", (torch.zeros(3, 2).double(), 5, 3)),
        ("rle_from_polygon", (torch.tensor([0, 0, 1, 1, 2, torch.nan]).double(), 5, 3)),
        ("rle_from_polygon", (torch.tensor([0, 0, -torch.inf, 1e9, 2, 3]).double(), 5, 3)),
        ("rle_from_polygon", (torch.zeros(6).double(), 0, 3)),
        ("rle_merge", ([], 5, 3, True)),
        ("rle_paste", (torch.zeros(2, 5, 5), torch.zeros(2, 4), 0, 9, 0.5, 1)),
        ("rle_paste", (torch.zeros(2, 5, 4), torch.zeros(2, 4), 9, 9, 0.5, 1)),
        ("rle_paste", (torch.zeros(2, 5, 5), torch.zeros(1, 4), 9, 9, 0.5, 1)),
        ("rle_paste", (torch.zeros(2, 5, 5), torch.zeros(2, 4), 9, 9, 0.0, 1)),
        ("rle_paste", (torch.zeros(2, 5, 5), torch.zeros(2, 4), 9, 9, float("nan"), 1)),
    ],
)
def test_bad_arguments(name: str, arguments: tuple[Any, ...]) -> None:
    assert agree(name, *arguments).startswith("ValueError")
