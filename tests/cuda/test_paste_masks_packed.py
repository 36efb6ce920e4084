"""CUDA pasting to bits: equal to the CPU kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskrcnn_scratch.ops._library import kernels
from tests.ops.inputs import random_boxes
from tests.ops.test_paste_masks_packed import AWKWARD, coordinate

pytestmark = pytest.mark.slow


def check(cuda, *arguments):
    ours = cuda("paste_masks_packed")(*arguments)
    assert torch.equal(ours, kernels.paste_masks_packed(*arguments))
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(64, 48), (33, 47), (65, 70), (1, 1), (0, 5), (5, 0)], ids=str)
def test_random(cuda, dtype, size):
    masks = torch.rand(5, 1, 28, 28).to(dtype)
    boxes = random_boxes(5, 50.0, 60.0) - 20
    for box_dtype in (torch.float32, torch.float64):
        check(cuda, masks, boxes.to(box_dtype), *size, 0.5)


@pytest.mark.parametrize("height", [40, 64, 130])
def test_awkward_boxes(cuda, height):
    boxes = torch.tensor(AWKWARD)
    packed = check(cuda, torch.ones(len(boxes), 1, 14, 14), boxes, height, 30, 0.5)
    assert (packed[4, :, 0] == (-1 if height >= 64 else 2**height - 1)).all()


def test_columns_of_more_words_than_a_warp_has_lanes(cuda):
    height = 64 * 32 + 70
    boxes = torch.tensor(
        [[0.0, 10, 3, 40], [0, 2040, 4, 2060], [0, 2100, 4, 2200], [0, 5, 4, 2115]]
    )
    check(cuda, torch.rand(4, 1, 5, 5), boxes, height, 5, 0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masks_that_are_stretched_in_parts(cuda, dtype):
    """More mask columns than shared memory holds, in boxes larger and smaller than the mask."""
    boxes = torch.tensor(
        [[3.0, 3, 290, 60], [50, 10, 71, 20], [-40, -9, 140, 90], [100, 5, 300, 80]]
    )
    for side in (31, 32, 33, 70):
        check(cuda, torch.rand(4, 1, side, side).to(dtype), boxes, 70, 300, 0.5)


def test_empty(cuda):
    check(cuda, torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), 10, 10, 0.5)


def test_any_strides(cuda):
    masks = torch.rand(28, 28, 1, 6).permute(3, 2, 0, 1)[::2]
    check(cuda, masks, random_boxes(4, 20.0, 20.0)[:1].expand(3, 4), 31, 40, 0.5)


def test_many_small_masks(cuda):
    check(cuda, torch.rand(300, 1, 3, 3), random_boxes(300, 5.0, 6.0), 6, 6, 0.5)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    boxes=st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 140), st.integers(1, 40)),
    side=st.integers(1, 9),
    threshold=st.floats(0.0625, 1, width=32),
)
def test_any_box(cuda, boxes, size, side, threshold):
    check(cuda, torch.rand(len(boxes), 1, side, side), torch.tensor(boxes), *size, threshold)


def test_bad_arguments(cuda):
    with pytest.raises(RuntimeError, match=r"boxes must be \[D, 4\]"):
        cuda("paste_masks_packed")(torch.rand(2, 1, 28, 28), torch.rand(3, 4), 10, 10, 0.5)
    with pytest.raises(RuntimeError, match="threshold must be above 0"):
        cuda("paste_masks_packed")(torch.rand(2, 1, 28, 28), torch.rand(2, 4), 10, 10, -1.0)
