"""CUDA matching: the result of the CPU kernel, to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch.ops._library import kernels
from tests.ops.inputs import random_boxes

pytestmark = pytest.mark.slow


def check(cuda, gt_boxes: Tensor, boxes: Tensor, find_low_quality_matches: bool = True) -> None:
    arguments = (gt_boxes, boxes, find_low_quality_matches)
    iou, gt, is_match = cuda("max_iou")(*arguments)
    expected_iou, expected_gt, expected_match = kernels.max_iou(*arguments)
    torch.testing.assert_close(iou, expected_iou, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(gt, expected_gt)
    assert torch.equal(is_match, expected_match)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_gt, num_boxes", [(1, 1), (8, 70), (9, 1500), (70, 257)])
def test_random(cuda, num_gt, num_boxes, dtype):
    gt_boxes = random_boxes(num_gt, 100, 300).to(dtype)
    boxes = random_boxes(num_boxes, 100, 300, seed=1).to(dtype)
    for find_low_quality_matches in (False, True):
        check(cuda, gt_boxes, boxes, find_low_quality_matches)


def test_awkward_boxes(cuda):
    awkward = torch.tensor(
        [
            [math.nan, 0.0, 10.0, 10.0],
            [0.0, 0.0, math.inf, 10.0],
            [9.0, 9.0, 3.0, 3.0],
            [9.0, 1.0, 3.0, 3.0],  # a negative area
            [5.0, 5.0, 5.0, 5.0],
            [0.0, 0.0, 1e30, 1e30],
        ]
    )
    boxes = torch.cat([random_boxes(90, 20, 20), awkward])
    for gt_boxes in (boxes, boxes[:-3], awkward[2:4], awkward[4:5], awkward[1:2]):
        check(cuda, gt_boxes, boxes)
        check(cuda, boxes, gt_boxes)


def test_no_overlap_matches_all(cuda):
    """The highest IoU of the ground truth is 0, which every box reaches."""
    gt_boxes, boxes = torch.tensor([[900.0, 900, 950, 950]]), random_boxes(300, 50, 60)
    check(cuda, gt_boxes, boxes)
    assert cuda("max_iou")(gt_boxes, boxes, True)[2].all()


def test_any_strides(cuda):
    gt_boxes, boxes = random_boxes(5, 50, 60), random_boxes(40, 50, 60, seed=1)
    check(cuda, gt_boxes.t().contiguous().t(), boxes.repeat(1, 2)[:, :4])
    flat = torch.cat([boxes.new_zeros(1), boxes.flatten()])
    check(cuda, gt_boxes[:1].expand(5, 4), flat[1:].view(-1, 4))  # begins after 4 bytes


def test_bad_arguments(cuda):
    boxes = torch.rand(3, 4)
    with pytest.raises(RuntimeError, match="gt_boxes must be"):
        cuda("max_iou")(torch.rand(0, 4), boxes, True)
    with pytest.raises(RuntimeError, match="gt_boxes must be Float, not Double"):
        cuda("max_iou")(boxes.double(), boxes, True)


# On a coarse grid equal IoUs and boxes without area are frequent.
box = st.tuples(*[st.integers(0, 5)] * 4).map(
    lambda b: [8.0 * b[0], 8.0 * b[1], 8.0 * (b[0] + b[2]), 8.0 * (b[1] + b[3])]
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    gt_boxes=st.lists(box, min_size=1, max_size=10), boxes=st.lists(box, min_size=1, max_size=70)
)
def test_any_boxes(cuda, gt_boxes, boxes):
    check(cuda, torch.tensor(gt_boxes), torch.tensor(boxes))
