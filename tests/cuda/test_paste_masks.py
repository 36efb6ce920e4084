"""CUDA mask pasting: equal to the CPU kernel."""

from __future__ import annotations

import math

import pytest
import torch

from maskrcnn_scratch.ops._library import kernels
from tests.ops.inputs import random_boxes

pytestmark = pytest.mark.slow

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def check(cuda, masks, boxes, height, width):
    ours = cuda("paste_masks")(masks, boxes, height, width)
    assert torch.equal(ours, kernels.paste_masks(masks, boxes, height, width))
    return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(64, 48), (33, 47), (1, 1), (5, 0)], ids=str)
def test_random(cuda, dtype, size):
    masks = torch.rand(5, 1, 28, 28).to(dtype)
    boxes = random_boxes(5, 50.0, 60.0) - 20
    for box_dtype in (torch.float32, torch.float64):
        check(cuda, masks, boxes.to(box_dtype), *size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 3), (2, 2), (3, 5), (7, 1), (5, 9)], ids=str)
def test_images_that_begin_within_a_vector(cuda, dtype, size):
    """16 bytes of output hold the end of one image, or all of it, and the next."""
    boxes = random_boxes(9, 6.0, 6.0) - 1
    check(cuda, torch.rand(9, 1, 4, 4).to(dtype), boxes, *size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_images_of_several_runs(cuda, dtype):
    """Runs outside of a box, beside it, and from one edge of the image to the other."""
    boxes = torch.tensor(
        [[90.0, 150, 120, 190], [-5, 3, 400, 9], [0, 0, 0, 0], [300, 200, 301, 211]]
    )
    check(cuda, torch.rand(4, 1, 5, 5).to(dtype), boxes, 211, 301)


@pytest.mark.parametrize(
    "dtype, size", [(torch.float32, (33, 33)), (torch.float32, (351, 341)),
                    (torch.bfloat16, (511, 681))], ids=str)  # fmt: skip
def test_boxes_of_whole_images_that_begin_within_a_vector(cuda, dtype, size):
    """Rows continue where a step of the block leads a little to the left of the next row."""
    boxes = torch.tensor([[0.0, 0, size[1], size[0]]]).expand(8, 4)
    check(cuda, torch.ones(8, 1, 5, 5).to(dtype), boxes, *size)


def test_awkward_boxes(cuda):
    boxes = torch.tensor(
        [
            [math.nan, 0, 10, 10],
            [0, 0, math.inf, 10],
            [5, 5, 5, 5],
            [9, 9, 3, 3],
            [-100, -100, 100, 100],
            [-50, -50, -20, -20],
            [90, 90, 200, 200],
            [1e18, 1e18, 2e18, 2e18],
            [0, 0, 1e30, 1e30],
        ]
    )
    pasted = check(cuda, torch.ones(9, 1, 14, 14), boxes, 40, 30)
    assert torch.count_nonzero(pasted[4]) == 40 * 30


def test_empty(cuda):
    check(cuda, torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), 10, 10)


def test_any_strides(cuda):
    masks = torch.rand(28, 28, 1, 6).permute(3, 2, 0, 1)[::2]
    check(cuda, masks, random_boxes(4, 20.0, 20.0)[:1].expand(3, 4), 31, 40)


def test_many_small_masks(cuda):
    check(cuda, torch.rand(300, 1, 3, 3), random_boxes(300, 5.0, 6.0), 6, 6)


def test_bad_arguments(cuda):
    with pytest.raises(RuntimeError, match=r"boxes must be \[D, 4\]"):
        cuda("paste_masks")(torch.rand(2, 1, 28, 28), torch.rand(3, 4), 10, 10)
