"""CUDA level assignment: the levels of the reference implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskrcnn_scratch.ops import reference
from tests.ops.inputs import random_boxes

pytestmark = pytest.mark.slow

ARGUMENTS = (2, 5, 224.0, 4.0, 1e-6)


def check(cuda, boxes: Tensor, *arguments) -> Tensor:
    levels = cuda("fpn_levels")(boxes, *arguments)
    assert torch.equal(levels, reference.fpn_levels(boxes, *arguments))
    return levels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [0, 1, 600])
def test_random(cuda, count, dtype):
    levels = check(cuda, random_boxes(count, 1000, 300).to(dtype), *ARGUMENTS)
    assert count < 600 or levels.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_at_the_border_of_levels(cuda, dtype):
    """A box of exactly 112, 224 or 448 pixels belongs to the coarser level."""
    sides = torch.tensor([111.0, 112, 113, 223, 224, 225, 447, 448, 449], dtype=dtype)
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    assert check(cuda, boxes, *ARGUMENTS).tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert check(cuda, boxes, 3, 4, 224.0, 4.0, 1e-6).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_awkward_boxes(cuda):
    boxes = torch.tensor([
        [math.nan, 0.0, 10, 10], [0, 0, math.inf, 10], [0, 0, 1e30, 1e30], [5, 5, 5, 5],
        [9, 1, 3, 3], [9, 9, 3, 3], [0, 0, 1e-30, 1e-30], [-math.inf, 0, math.inf, 10],
    ])  # fmt: skip
    assert check(cuda, boxes, *ARGUMENTS).tolist() == [0, 3, 3, 0, 0, 0, 0, 3]


def test_columns_of_rois_and_any_strides(cuda):
    boxes = random_boxes(40, 900, 300)
    rois = torch.cat([torch.full((40, 1), 1e6), boxes], dim=1)
    expected = check(cuda, boxes, *ARGUMENTS)
    for strided in (rois[:, 1:], boxes.t().contiguous().t(), boxes.repeat_interleave(2, 0)[::2]):
        assert torch.equal(check(cuda, strided, *ARGUMENTS), expected)
    check(cuda, boxes[:1].expand(40, 4), *ARGUMENTS)


def test_bad_arguments(cuda):
    boxes = torch.zeros(3, 4)
    for change, message in {
        (torch.zeros(3, 5), *ARGUMENTS): r"boxes must be \[R, 4\], not \[3, 5\]",
        (boxes.half(), *ARGUMENTS): "boxes must be float32 or float64",
        (boxes, 5, 2, 224.0, 4.0, 1e-6): "coarsest must be at least finest, they are 2 and 5",
        (boxes, 2, 5, 0.0, 4.0, 1e-6): "canonical_scale must be positive",
    }.items():
        with pytest.raises(RuntimeError, match=message):
            cuda("fpn_levels")(*change)
