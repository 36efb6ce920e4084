"""Kernel, reference implementation and torchvision's IoU matrix agree to the bit."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch import host_sync, ops
from maskrcnn_scratch.ops import reference
from tests.ops.inputs import random_boxes

REFERENCE = reference.max_iou.__globals__
OP = torch.ops.maskrcnn_scratch.max_iou
SIDES = st.integers(0, 5)  # on a coarse grid, so that equal IoUs and empty boxes are frequent
BOXES = st.tuples(st.integers(0, 6), st.integers(0, 6), SIDES, SIDES).map(
    lambda b: [8.0 * b[0], 8.0 * b[1], 8.0 * (b[0] + b[2]), 8.0 * (b[1] + b[3])]
)


def from_matrix(gt_boxes: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    iou = torchvision.ops.box_iou(gt_boxes, boxes)  # [G, A]
    reaches_best = iou == iou.amax(1, keepdim=True)
    return (*iou.max(0), reaches_best.any(0))


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=300, deadline=None)
@given(
    gt_boxes=st.lists(BOXES, min_size=1, max_size=6),
    boxes=st.lists(BOXES, min_size=1, max_size=40),
    pairs_at_once=st.sampled_from([1, 16, 100, 2**18]),
    on_device=st.booleans(),
)
def test_ties_and_boxes_without_area(gt_boxes, boxes, pairs_at_once, on_device) -> None:
    gt_boxes, boxes = torch.tensor(gt_boxes), torch.tensor(boxes)
    expected = from_matrix(gt_boxes, boxes)
    assert_same(ops.max_iou(gt_boxes, boxes, True), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REFERENCE, "PAIRS_AT_ONCE_CPU", pairs_at_once)
        if on_device:
            patch.setattr(host_sync, "can_sync", lambda tensor: False)
        assert_same(reference.max_iou(gt_boxes, boxes, True), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_boxes", [1, 255, 256, 257, 10_000])
@pytest.mark.parametrize("num_gt", [1, 7, 300])
def test_blocks_and_threads(num_gt: int, num_boxes: int, dtype: torch.dtype) -> None:
    gt_boxes = random_boxes(num_gt, 100, 300).to(dtype)
    boxes = random_boxes(num_boxes, 100, 300, seed=1).to(dtype)
    expected = from_matrix(gt_boxes, boxes)
    assert_same(ops.max_iou(gt_boxes, boxes, True), expected)
    iou, gt, is_low_quality_match = ops.max_iou(gt_boxes, boxes)
    assert_same((iou, gt), expected[:2])
    assert is_low_quality_match.shape == iou.shape and not is_low_quality_match.any()


AWKWARD = [
    [math.nan, 0.0, 10.0, 10.0],
    [0.0, 0.0, math.inf, 10.0],
    [9.0, 9.0, 3.0, 3.0],  # inside out
    [9.0, 1.0, 3.0, 3.0],  # a negative area
    [5.0, 5.0, 5.0, 5.0],
    [0.0, 0.0, 1e30, 1e30],  # an infinite area
]


@pytest.mark.parametrize("filler", [0, 3, 300])
def test_nan_infinite_and_inverted_boxes(filler: int) -> None:
    boxes = torch.cat([random_boxes(filler, 20, 20), torch.tensor(AWKWARD)])
    for gt_boxes in (boxes, boxes[:-3], torch.tensor(AWKWARD[2:4])):
        assert_same(ops.max_iou(gt_boxes, boxes, True), from_matrix(gt_boxes, boxes))


def test_strided_and_half_types() -> None:
    gt_boxes, boxes = random_boxes(5, 50, 60), random_boxes(40, 50, 60, seed=1)
    expected = from_matrix(gt_boxes, boxes)
    strided = gt_boxes.t().contiguous().t(), boxes.repeat(1, 2)[:, :4]
    assert_same(ops.max_iou(*strided, True), expected)
    low = gt_boxes.bfloat16(), boxes.bfloat16()
    assert_same(ops.max_iou(*low, True), from_matrix(*(tensor.float() for tensor in low)))


@pytest.mark.parametrize("num_boxes", [2_000, 268_569])  # proposals; anchors of 800 x 1344
@pytest.mark.parametrize("on_device", [False, True])  # where all pairs are computed twice
def test_memory_of_the_reference_does_not_grow_with_pairs(
    num_boxes, on_device, monkeypatch
) -> None:
    largest = 0

    def recording_box_iou(gt_boxes: Tensor, boxes: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(gt_boxes) * len(boxes))
        return torchvision.ops.box_iou(gt_boxes, boxes)

    monkeypatch.setitem(REFERENCE, "box_iou", recording_box_iou)
    if on_device:
        monkeypatch.setattr(host_sync, "can_sync", lambda tensor: False)
    gt_boxes, boxes = random_boxes(500, 100, 300), random_boxes(num_boxes, 100, 300, seed=1)
    ours = reference.max_iou(gt_boxes, boxes, True)
    assert 0 < largest <= REFERENCE["PAIRS_AT_ONCE_CPU"]
    assert_same(ours, ops.max_iou(gt_boxes, boxes, True))


@pytest.mark.parametrize("find_low_quality_matches", [False, True])
def test_opcheck(find_low_quality_matches: bool) -> None:
    torch.library.opcheck(
        OP, (random_boxes(3, 9, 9), random_boxes(20, 9, 9), find_low_quality_matches)
    )


def test_errors_name_the_argument() -> None:
    boxes = torch.rand(3, 4)
    for gt_boxes in (torch.rand(0, 4), torch.rand(4), torch.rand(2, 5)):
        with pytest.raises(RuntimeError, match="gt_boxes must be"):
            ops.max_iou(gt_boxes, boxes)
    with pytest.raises(RuntimeError, match=r"^boxes must be"):
        ops.max_iou(boxes, boxes[:0])
    with pytest.raises(RuntimeError, match="gt_boxes must be Float, not Double"):
        ops.max_iou(boxes.double(), boxes)
