"""CUDA NMS: the keep list of the CPU kernel."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops._library import kernels
from maskrcnn_scratch.ops.group_offset import offset_boxes_by_group
from tests.ops.inputs import random_boxes, random_scores

pytestmark = pytest.mark.slow


def check(cuda, boxes: Tensor, scores: Tensor, groups: Tensor, *arguments) -> Tensor:
    indices, count = cuda("nms_padded")(boxes, scores, groups, *arguments)
    expected_indices, expected_count = kernels.nms_padded(boxes, scores, groups, *arguments)
    assert torch.equal(count, expected_count)
    assert torch.equal(indices, expected_indices)
    return count


def problem(images: int, candidates: int, groups: int, side: float = 20.0, empty: float = 0.2):
    """Boxes, scores with many ties, groups; the share ``empty`` of them is padding."""
    boxes = torch.stack([random_boxes(candidates, side, 60.0, seed) for seed in range(images)])
    scores = torch.stack([random_scores(candidates, 40, seed) for seed in range(images)])
    generator = torch.Generator().manual_seed(candidates)
    scores[torch.rand(images, candidates, generator=generator) < empty] = -math.inf
    return boxes, scores, torch.randint(groups, (images, candidates), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("candidates, groups", [(1, 1), (64, 1), (65, 2), (400, 1), (400, 7)])
def test_random(cuda, candidates, groups, dtype):
    boxes, scores, group = problem(2, candidates, groups)
    for threshold in (0.0, 0.3, 0.7, 1.0):
        for max_out in (3, candidates):
            check(cuda, boxes.to(dtype), scores.to(dtype), group, threshold, max_out, groups)


def test_mostly_padding(cuda):
    """90,000 candidates of which 600 are valid, as after the box head."""
    boxes, scores, groups = problem(2, 90_000, 91, side=200.0, empty=0.0)
    keep = torch.zeros(2, 90_000, dtype=torch.bool)
    keep[:, torch.randperm(90_000)[:600]] = True
    scores[~keep] = -math.inf
    count = check(cuda, boxes, scores, groups, 0.5, 100, 91)
    assert count.tolist() == [100, 100]


def test_group_of_several_chunks(cuda):
    """More than 10,240 candidates, so that a chunk has 2048 boxes; one group has more than that."""
    boxes, scores, groups = problem(1, 10_300, 2, side=6.0, empty=0.7)
    groups = (groups * (torch.rand(groups.shape) < 0.2)).long()
    assert ((scores > -math.inf) & (groups == 0)).sum() > 2048
    for max_out in (10_300, 700):
        assert check(cuda, boxes, scores, groups, 0.4, max_out, 2).item() > 500


@pytest.mark.parametrize("max_out", [10_300, 1000])  # all blocks suppress later chunks, or one does
def test_groups_that_end_at_and_just_after_a_chunk(cuda, max_out):
    """Groups of 2049 and 4096 boxes; the best box of each comes again as first of its chunk 2."""
    sizes = torch.tensor([2049, 4096, 10_300 - 2049 - 4096])
    groups = torch.repeat_interleave(torch.arange(3), sizes)[None]
    boxes = random_boxes(10_300, 9.0, 20.0)[None]
    boxes[0, [2048, 2049 + 2048]] = boxes[0, [0, 2049]]
    scores = torch.linspace(1, 0, 10_300)[None].masked_fill(groups == 2, -math.inf)
    check(cuda, boxes, scores, groups, 0.3, max_out, 3)


@pytest.mark.parametrize("groups", [300, 10**6])
def test_more_groups_than_buckets(cuda, groups):
    """Groups share buckets; the second time most have one box."""
    boxes, scores, group = problem(2, 700, groups, side=60.0)
    group[1] = group[1] * 256 % groups  # one bucket of many groups
    for max_out in (20, 700):
        check(cuda, boxes, scores, group, 0.3, max_out, groups)


def test_equal_scores_in_different_groups(cuda):
    """The rank over all groups is by score, then by index."""
    boxes, scores, groups = problem(2, 300, 6, side=2.0)
    scores = scores.clamp(max=0.05).where(scores > -math.inf, scores)
    for max_out in (40, 300):
        check(cuda, boxes, scores, groups, 0.5, max_out, 6)


def test_one_workspace(cuda):
    """Two results and one allocation for everything else, which nothing but the kernels fills."""
    arguments = (*problem(2, 90, 3), 0.5, 45, 3, 1000)
    cuda("nms_padded")(*arguments)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        cuda("nms_padded")(*arguments)
    calls = Counter(event.name for event in profiler.events())
    assert calls["aten::new_empty"] == 3, calls
    assert calls["aten::new_zeros"] == calls["aten::zeros"] == calls["aten::zero_"] == 0, calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("largest", [None, math.nan, math.inf])
def test_offset_of_groups(cuda, dtype, largest):
    """Images with as many valid boxes as the limit, one more, and none."""
    boxes, scores, groups = problem(3, 300, 5, side=30.0)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    limit = int((scores[0] > -math.inf).sum())
    scores[1] = scores[0]
    scores[1, (scores[1] == -math.inf).nonzero()[0]] = 0.5
    scores[2] = -math.inf
    boxes[:, (scores[0] == -math.inf)] += 1e6  # padding has no say
    if largest is not None:
        boxes[:, int((scores[0] > -math.inf).nonzero()[0]), 2] = largest
    check(cuda, boxes, scores, groups, 0.4, 300, 5, limit)


def test_offset_rounds_the_boxes(cuda):
    """The IoU of two boxes is just above a threshold, and with the offset it is just below."""
    pair = torch.tensor([[0.1, 0.2, 10.3, 10.4], [0.4, 0.1, 10.7, 10.9]])
    groups = torch.full((1, 2), 90)
    scores = torch.tensor([[0.9, 0.8]])
    decisions = set()
    iou = torch.tensor(0.0)
    for limit in (0, 2):
        shifted = offset_boxes_by_group(pair[None], scores, groups, limit)[0]
        iou = ops.boxes.box_iou(shifted[:1], shifted[1:])[0, 0]
        decisions.add(float(iou))
    low, high = sorted(decisions)
    for limit in (0, 2):
        count = check(cuda, pair[None], scores, groups, (low + high) / 2, 2, 91, limit)
        decisions.add(-count.item())
    assert {-1, -2} < decisions


@pytest.mark.parametrize("count", [63, 64, 200])
def test_chains(cuda, count):
    """Each box suppresses the next alone: what is kept depends on all boxes before."""
    x = torch.arange(count) * 4.0
    boxes = torch.stack([x, x * 0, x + 10, x * 0 + 10], dim=1)[None]
    scores = torch.linspace(1, 0.5, count)[None]
    groups = torch.zeros(1, count, dtype=torch.int64)
    kept = check(cuda, boxes, scores, groups, 0.3, count, 1)
    assert kept.item() == (count + 1) // 2
    assert check(cuda, boxes, scores, groups, 0.3, 7, 1).item() == 7


def test_all_in_one_place(cuda):
    boxes = torch.tensor([[10.0, 10, 20, 20]]).expand(1, 200, 4)
    scores = torch.ones(1, 200)
    groups = torch.arange(200)[None] % 4
    indices, count = cuda("nms_padded")(boxes, scores, groups, 0.5, 10, 4)
    assert count.item() == 4
    assert indices[0].tolist() == [0, 1, 2, 3, 0, 0, 0, 0, 0, 0]


def test_nan_and_infinity(cuda):
    boxes, scores, groups = problem(2, 130, 2)
    boxes[0, ::7] = math.nan
    boxes[0, 1::9, 2] = math.inf
    boxes[1, ::5, 2:] = boxes[1, ::5, :2]  # no area
    scores[0, ::11] = math.nan
    scores[1, ::13] = math.inf
    check(cuda, boxes, scores, groups, 0.5, 130, 2)


def test_empty(cuda):
    for images, candidates, max_out in ((0, 5, 5), (2, 0, 5), (2, 5, 0)):
        check(cuda, *problem(images, candidates, 1) if images else (
            torch.zeros(0, 5, 4), torch.zeros(0, 5), torch.zeros(0, 5, dtype=torch.int64)
        ), 0.5, max_out, 1)  # fmt: skip
    boxes, scores, groups = problem(2, 50, 1, empty=1.0)
    assert check(cuda, boxes, scores, groups, 0.5, 5, 1).tolist() == [0, 0]


def test_any_strides(cuda):
    boxes, scores, groups = problem(2, 90, 3)
    check(
        cuda, boxes[:, ::2], scores.t().contiguous().t()[:, ::2],
        groups[:1, ::2].expand(2, 45), 0.5, 45, 3,
    )  # fmt: skip


def test_group_out_of_range(cuda, monkeypatch):
    boxes, scores, groups = problem(1, 30, 2)
    groups[0, 3], groups[0, 4] = -5, 2**40  # unchecked, they are groups like others
    _, count = cuda("nms_padded")(boxes, scores, groups, 0.5, 30, 2)
    assert 0 < count.item() <= 30
    monkeypatch.setenv("MASKRCNN_CHECKED", "1")
    with pytest.raises(RuntimeError, match=r"groups\[0, 3\] is -5, but num_groups is 2"):
        cuda("nms_padded")(boxes, scores, groups, 0.5, 30, 2)


def test_bad_arguments(cuda):
    boxes, scores, groups = problem(1, 5, 2)
    with pytest.raises(RuntimeError, match="scores must be"):
        cuda("nms_padded")(boxes, scores[:, :3], groups, 0.5, 5, 2)
    with pytest.raises(RuntimeError, match="max_out must not be negative"):
        cuda("nms_padded")(boxes, scores, groups, 0.5, -1, 2)
    with pytest.raises(RuntimeError, match="offset_limit must not be negative"):
        cuda("nms_padded")(boxes, scores, groups, 0.5, 5, 2, -1)


small = st.integers(0, 8)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    candidates=st.lists(
        st.tuples(small, small, small, small, st.sampled_from([0.1, 0.5, 0.5, -math.inf]), small),
        min_size=1,
        max_size=70,
    ),
    threshold=st.sampled_from([0.0, 1 / 3, 0.5, 0.7]),
    max_out=st.integers(1, 70),
)
def test_any_boxes(cuda, candidates, threshold, max_out):
    table = torch.tensor(candidates, dtype=torch.float32)[None]  # [1, K, 6]
    boxes = torch.cat([table[..., :2], table[..., :2] + table[..., 2:4]], dim=-1)
    check(cuda, boxes, table[..., 4], table[..., 5].long(), threshold, max_out, 9)
