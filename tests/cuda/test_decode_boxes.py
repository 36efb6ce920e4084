"""CUDA decoding: the boxes of the reference implementation, up to how ``exp`` is rounded."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch.ops import reference
from tests.ops.inputs import random_boxes, rows_in_tables

pytestmark = pytest.mark.slow

WEIGHTS, CLIP, MIN_SIZE = (10.0, 10.0, 5.0, 5.0), math.log(1000 / 16), 1e-2
# exp differs by one ulp; the side is added to a centre, of an image of some hundred pixels.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}


def check(cuda, deltas, references, *options) -> tuple[Tensor, Tensor]:
    return check_rows(cuda, *rows_in_tables(deltas, references), *options)


def check_rows(cuda, *arguments) -> tuple[Tensor, Tensor]:
    boxes, is_large = cuda("decode_boxes")(*arguments)
    expected, expected_large = reference.decode_boxes(*arguments)
    tolerance = TOLERANCE[boxes.dtype]
    torch.testing.assert_close(boxes, expected, rtol=0, atol=tolerance, equal_nan=True)
    sides = expected[..., 2:] - expected[..., :2]
    decided = ((sides - arguments[7]).abs() > tolerance).all(-1)
    assert torch.equal(is_large[decided], expected_large[decided])
    return boxes, is_large


def problem(images: int, count: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(count)
    deltas = 3 * torch.randn(images, count, 4, generator=generator)
    references = random_boxes(images * count, 80, 90).reshape(images, count, 4)
    sizes = torch.tensor([[90, 120], [60, 70], [80, 33]])[:images]
    return deltas.to(dtype), references.to(dtype), sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("images, count", [(1, 1), (2, 70), (3, 600), (2, 0), (0, 5)])
def test_random(cuda, images, count, dtype):
    _, is_large = check(cuda, *problem(images, count, dtype), WEIGHTS, CLIP, MIN_SIZE)
    assert count < 70 or 0 < is_large.sum() < is_large.numel()


def test_each_delta_has_its_weight_and_each_side_its_limit(cuda):
    references = torch.tensor([[[10.0, 20, 30, 60]]]).expand(1, 5, 4)
    deltas = torch.cat([torch.zeros(1, 1, 4), torch.eye(4)[None]], dim=1)
    boxes, _ = check(cuda, deltas, references, torch.tensor([[50, 40]]), (2.0, 4, 8, 16), CLIP, 1.0)
    assert boxes[0, 0].tolist() == [10, 20, 30, 50]
    assert boxes[0, 1].tolist() == [20, 20, 40, 50]  # half of 20 pixels to the right
    assert boxes[0, 2].tolist() == [10, 30, 30, 50]  # a quarter of 40 pixels down


def test_limit_of_the_side_and_sides_at_the_minimum(cuda):
    deltas = torch.tensor([[[0.0, 0, 9, 9], [0, 0, math.inf, 0], [0, 0, 0, 0], [0, 0, -99, 0]]])
    references = torch.tensor([[100.0, 100, 102, 104]]).expand(1, 4, 4)
    arguments = (deltas, references, torch.tensor([[900, 900]]), (1.0,) * 4, math.log(8), 2.0)
    boxes, is_large = check(cuda, *arguments)
    torch.testing.assert_close(boxes[0, :2, 2] - boxes[0, :2, 0], torch.full((2,), 16.0))
    assert is_large.tolist() == [[True, True, True, False]]


def test_nan_and_infinity(cuda):
    deltas, references, sizes = problem(2, 40)
    for tensor, first in ((deltas, 0), (references, 4)):
        for corner in range(4):
            tensor[0, first + corner, corner] = math.nan
            tensor[1, first + corner, corner] = math.inf
            tensor[1, 10 + first + corner, corner] = -math.inf
    boxes, is_large = check(cuda, deltas, references, sizes, WEIGHTS, CLIP, MIN_SIZE)
    assert boxes.isnan().any() and not is_large[boxes.isnan().any(-1)].any()


def test_any_strides(cuda):
    deltas, references, sizes = problem(2, 30)
    rows = rows_in_tables(deltas, references)
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in rows]
    check_rows(cuda, *strided, sizes.t().contiguous().t(), WEIGHTS, CLIP, MIN_SIZE)
    flat = torch.cat([rows[0].new_zeros(1), rows[0].flatten()])
    check_rows(cuda, flat[1:].view_as(rows[0]), *rows[1:], sizes, WEIGHTS, CLIP, MIN_SIZE)


def test_references_of_all_images(cuda):
    deltas, references, sizes = problem(3, 70)
    table, indices, anchors, of_anchors = rows_in_tables(deltas, references)
    rows = (table, indices, anchors[:1], of_anchors[:1].expand(3, -1))
    check_rows(cuda, *rows, sizes, WEIGHTS, CLIP, MIN_SIZE)


def test_indices_out_of_range(cuda, monkeypatch):
    """They give zeros, or raise in the checked mode."""
    deltas, references, sizes = problem(2, 5)
    rows = rows_in_tables(deltas, references)
    rows[1][0, :3] = torch.tensor([-1, 8, 2**62])
    rows[3][1, 1:3] = torch.tensor([8, -(2**62)])
    arguments = (*rows, sizes, WEIGHTS, CLIP, MIN_SIZE)
    boxes, is_large = cuda("decode_boxes")(*arguments)
    outside = torch.tensor([[True, True, True, False, False], [False, True, True, False, False]])
    assert not boxes[outside].any() and not is_large[outside].any()
    assert boxes[~outside].any(-1).all()
    monkeypatch.setenv("MASKRCNN_CHECKED", "1")
    with pytest.raises(RuntimeError, match=r"delta_indices\[0, 0\] is -1, but there are 8 rows"):
        cuda("decode_boxes")(*arguments)
    rows[1].zero_()
    with pytest.raises(RuntimeError, match=r"reference_indices\[1, 1\] is 8, but there are 8 rows"):
        cuda("decode_boxes")(*arguments)


@pytest.mark.parametrize(
    "position, value, message",
    [
        (0, torch.zeros(2, 6, 5), r"deltas must be \[N, A, 4\], not \[2, 6, 5\]"),
        (1, torch.zeros(3, 3).long(), r"delta_indices must be \[N, K\] because deltas is"),
        (1, torch.zeros(2, 3), "delta_indices must be Long, not Float"),
        (2, torch.zeros(3, 6, 4), r"references must be \[N, P, 4\] or \[1, P, 4\] because"),
        (2, torch.zeros(2, 6, 4).double(), "references must be Float, not Double"),
        (3, torch.zeros(2, 4).long(), r"reference_indices must be \[2, 3\] as delta_indices is"),
        (4, torch.zeros(3, 2).long(), r"image_sizes must be \[N, 2\] because deltas is"),
        (4, torch.zeros(2, 2), "image_sizes must be Long, not Float"),
        (5, (1.0, 1.0), "weights must be 4 numbers, not 2"),
    ],
)  # fmt: skip
def test_bad_arguments(cuda, position, value, message):
    deltas, references, sizes = problem(2, 3)
    arguments = [*rows_in_tables(deltas, references), sizes, WEIGHTS, CLIP, MIN_SIZE]
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message) as error:
        cuda("decode_boxes")(*arguments)
    assert "\n" not in str(error.value)


number = st.floats(-100, 100, width=32) | st.sampled_from([0.0, -0.0, math.nan])


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.lists(number, min_size=8, max_size=8), min_size=1, max_size=70),
    min_size=st.sampled_from([0.0, 1e-3, 5.0]),
)
def test_any_boxes(cuda, rows, min_size):
    table = torch.tensor(rows)[None]
    sizes = torch.tensor([[60, 80]])
    check(cuda, table[..., :4], table[..., 4:], sizes, (1.0,) * 4, CLIP, min_size)
