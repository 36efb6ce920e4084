from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops.group_offset import offset_boxes_by_group
from tests.ops.inputs import random_boxes, random_scores

NAN, INF = float("nan"), float("inf")
THRESHOLDS = [0.0, 0.3, 0.5, 0.7, 1.0]


def clustered_boxes(count: int) -> Tensor:
    """Many boxes around few centres: most are suppressed."""
    generator = torch.Generator().manual_seed(0)
    centre = random_boxes(20, 80, 300)[torch.randint(20, (count,), generator=generator)]
    return centre + torch.randn(count, 4, generator=generator) * 4


@pytest.mark.parametrize("levels", [None, 20])  # distinct scores, duplicated scores
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("count", [0, 1, 2, 33, 1000, 3000])
def test_nms_is_torchvisions(count: int, threshold: float, levels: int | None) -> None:
    scores = random_scores(count, levels)
    for boxes in (random_boxes(count, 100, 400), clustered_boxes(count)):
        expected = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(ops.nms(boxes, scores, threshold), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nms_at_the_threshold(dtype: torch.dtype) -> None:
    # On a small grid many IoUs are exactly 1/2 or 1/3, which in float32 is above the double 1/3.
    grid = torch.randint(0, 6, (500, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    boxes = torch.cat([grid, grid + 1 + torch.arange(1000).reshape(500, 2) % 3], dim=1)
    scores = random_scores(500).to(dtype)
    for threshold in (1 / 2, 1 / 3, 1 / 4, 2 / 3, 0.7, 0.2):
        expected = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(ops.nms(boxes, scores, threshold), expected)


@pytest.mark.parametrize("offset", [0, -200])  # negative coordinates make torchvision's groups meet
@pytest.mark.parametrize("levels", [None, 20])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("count", [0, 1, 300, 1000, 1001, 2500])
def test_batched_nms_is_torchvisions_on_both_branches(
    count: int, threshold: float, levels: int | None, offset: int
) -> None:
    boxes, scores = random_boxes(count, 150, 400) + offset, random_scores(count, levels)
    for idxs in (torch.arange(count) % 5, torch.arange(count) % 91, torch.arange(count) * 7 - 50):
        expected = torchvision.ops.batched_nms(boxes, scores, idxs, threshold)
        assert torch.equal(ops.batched_nms(boxes, scores, idxs, threshold), expected)


def test_offset_boxes_give_torchvisions_rounding_image_by_image() -> None:
    # As in the model: several images with padding, groups separated by the offset and by number.
    counts, capacity = [1000, 400, 0, 1300], 1500
    boxes = random_boxes(4 * capacity, 150, 800).reshape(4, capacity, 4)
    scores = random_scores(4 * capacity).reshape(4, capacity)
    groups = (torch.arange(4 * capacity) % 7).reshape(4, capacity)
    for n, count in enumerate(counts):
        scores[n, torch.randperm(capacity)[count:]] = -INF
    shifted = offset_boxes_by_group(boxes, scores, groups, limit=1000)
    assert torch.equal(shifted[3], boxes[3])
    indices, count = ops.nms_padded(shifted, scores, groups, 0.5, capacity, 7)
    for inside in (
        ops.batched_nms_padded(boxes, scores, groups, 0.5, capacity, 7),
        reference.nms_padded(boxes, scores, groups, 0.5, capacity, 7, 1000),
    ):
        assert torch.equal(inside[0], indices) and torch.equal(inside[1], count)
    for n in range(4):
        valid = (scores[n] > -INF).nonzero().squeeze(1)
        kept = torchvision.ops.batched_nms(boxes[n, valid], scores[n, valid], groups[n, valid], 0.5)
        assert torch.equal(indices[n, : count[n]], valid[kept])
    assert offset_boxes_by_group(boxes[:, :0], scores[:, :0], groups[:, :0], 9).shape == (4, 0, 4)


coordinates = st.one_of(st.integers(0, 8).map(float), st.sampled_from([NAN, INF, -INF, 1e30, -3.5]))
scores_with_padding = st.sampled_from([0.1, 0.2, 0.3, 0.9, 0.0, -0.0, -1.0, INF, -INF, NAN])
candidates = st.tuples(st.tuples(*[coordinates] * 4), scores_with_padding, st.integers(0, 2))


@settings(max_examples=100, deadline=None)
@given(
    images=st.integers(0, 40).flatmap(
        lambda k: st.lists(st.lists(candidates, min_size=k, max_size=k), min_size=1, max_size=2)
    ),
    threshold=st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0]),
    max_out=st.integers(0, 50),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    offset_limit=st.sampled_from([0, 2, 20]),
)
def test_equals_the_definition(images, threshold, max_out, dtype, offset_limit) -> None:
    count, capacity = len(images), len(images[0])
    boxes = torch.tensor([[box[0] for box in image] for image in images], dtype=dtype)
    scores = torch.tensor([[box[1] for box in image] for image in images], dtype=dtype)
    groups = torch.tensor([[box[2] for box in image] for image in images], dtype=torch.int64)
    boxes = boxes.reshape(count, capacity, 4)
    arguments = (boxes, scores, groups, threshold, max_out, 3, offset_limit)
    indices, found = torch.ops.maskrcnn_scratch.nms_padded(*arguments)
    expected_indices, expected_found = reference.nms_padded(*arguments)
    assert torch.equal(found, expected_found)
    assert torch.equal(indices, expected_indices)


@pytest.mark.parametrize("levels", [None, 900])
def test_large_problem_is_torchvisions(levels: int | None) -> None:
    # Enough boxes that threads share the candidates of one group.
    boxes, scores = random_boxes(8000, 30, 2000), random_scores(8000, levels)
    expected = torchvision.ops.nms(boxes, scores, 0.5)
    assert torch.equal(ops.nms(boxes, scores, 0.5), expected)


def test_max_out_takes_the_best_across_groups() -> None:
    boxes, scores = random_boxes(500, 100, 400)[None], random_scores(500)[None]
    groups = torch.arange(500)[None] % 4
    every, _ = ops.nms_padded(boxes, scores, groups, 0.5, 500, 4)
    best, count = ops.nms_padded(boxes, scores, groups, 0.5, 30, 4)
    assert count.tolist() == [30]
    assert torch.equal(best, every[:, :30])


def test_padding_can_be_gathered() -> None:
    boxes, scores = torch.tensor([[[0.0, 0, 1, 1]] * 3]), torch.tensor([[0.5, 0.9, -INF]])
    groups = torch.zeros(1, 3, dtype=torch.int64)
    indices, count = ops.nms_padded(boxes, scores, groups, 0.5, 5, 1)
    assert indices.tolist() == [[1, 0, 0, 0, 0]]
    assert count.tolist() == [1]


def test_every_score_is_a_candidate_in_nms() -> None:
    boxes = random_boxes(6, 1, 1000)  # far apart
    scores = torch.tensor([0.5, -INF, NAN, INF, -INF, -1e38])
    assert ops.nms(boxes, scores, 0.5).tolist() == [2, 3, 0, 5, 1, 4]
    assert ops.batched_nms(boxes, scores, torch.arange(6), 0.5).tolist() == [2, 3, 0, 5, 1, 4]


def test_boxes_without_area_and_nan_suppress_nothing() -> None:
    boxes = torch.tensor([(3.0, 3, 3, 3)] * 3 + [(NAN, 0, 9, 9), (0, 0, INF, INF), (0, 0, 9, 9)])
    assert ops.nms(boxes, torch.linspace(1, 0, 6), 0.0).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    boxes, scores = random_boxes(400, 100, 300).to(dtype), random_scores(400).to(dtype)
    expected = torchvision.ops.nms(boxes.float(), scores.float(), 0.5)
    assert torch.equal(ops.nms(boxes, scores, 0.5), expected)


def test_any_strides() -> None:
    boxes, scores = random_boxes(200, 100, 300), random_scores(200)
    strided = boxes.t().contiguous().t().repeat_interleave(2, 0)[::2]
    expected = torchvision.ops.nms(boxes, scores, 0.5)
    assert torch.equal(ops.nms(strided, scores.repeat_interleave(3)[::3], 0.5), expected)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": torch.zeros(1, 3, 5)}, r"boxes must be \[N, K, 4\], not \[1, 3, 5\]"),
        ({"scores": torch.zeros(1, 4)}, r"scores must be \[N, K\] because boxes is \[1, 3, 4\]"),
        ({"scores": torch.zeros(1, 3).double()}, "scores must be Float, not Double"),
        ({"groups": torch.zeros(1, 3)}, "groups must be Long, not Float"),
        ({"groups": torch.tensor([[0, 2, 0]])}, r"groups\[0, 1\] is 2, but num_groups is 2"),
        ({"groups": torch.tensor([[0, 0, -1]])}, r"groups\[0, 2\] is -1"),
        ({"max_out": -1}, "max_out must not be negative"),
        ({"boxes": torch.zeros(1, 3, 4).int(), "scores": torch.zeros(1, 3).int()}, "float32 or"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    arguments = {
        "boxes": torch.zeros(1, 3, 4),
        "scores": torch.zeros(1, 3),
        "groups": torch.zeros(1, 3, dtype=torch.int64),
        "iou_threshold": 0.5,
        "max_out": 3,
        "num_groups": 2,
    }
    with pytest.raises(RuntimeError, match=message) as error:
        ops.nms_padded(**{**arguments, **change})
    assert "\n" not in str(error.value)


def test_bad_shapes_of_nms_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"boxes must be \[K, 4\], not \[3, 5\]"):
        ops.nms(torch.zeros(3, 5), torch.zeros(3), 0.5)
    with pytest.raises(RuntimeError, match=r"scores must be \[K\], not \[3, 1\]"):
        ops.batched_nms(torch.zeros(3, 4), torch.zeros(3, 1), torch.zeros(3), 0.5)
