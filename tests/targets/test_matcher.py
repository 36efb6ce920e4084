"""The matcher's results equal torchvision's, also for boxes with many ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou as torchvision_box_iou

from maskrcnn_scratch.targets.matcher import Matcher, gather_matched_boxes


def torchvision_matches(gt_boxes, boxes, *args):
    return TorchvisionMatcher(*args)(torchvision_box_iou(gt_boxes, boxes))


def random_boxes(count, generator, size=300.0):
    corners = torch.rand(count, 2, 2, generator=generator) * size
    return torch.cat((corners.amin(1), corners.amax(1) + 1), dim=1)


# Corners on a coarse grid make equal IoUs frequent.
grid_box = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 5)] * 2).map(
    lambda b: [b[0] * 8.0, b[1] * 8.0, (b[0] + b[2]) * 8.0, (b[1] + b[3]) * 8.0]
)


@settings(max_examples=200, deadline=None)
@given(
    gt_boxes=st.lists(grid_box, min_size=1, max_size=6),
    boxes=st.lists(grid_box, min_size=1, max_size=40),
    thresholds=st.sampled_from([(0.7, 0.3), (0.5, 0.5), (1.0, 0.0), (0.4, 0.2)]),
    low_quality=st.booleans(),
)
def test_equals_torchvision_with_ties(gt_boxes, boxes, thresholds, low_quality):
    gt_boxes, boxes = torch.tensor(gt_boxes), torch.tensor(boxes)
    ours = Matcher(*thresholds, low_quality)(gt_boxes, boxes)
    assert torch.equal(ours, torchvision_matches(gt_boxes, boxes, *thresholds, low_quality))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_gt", [1, 7, 60])
def test_equals_torchvision_on_many_boxes(num_gt, dtype):
    generator = torch.Generator().manual_seed(num_gt)
    gt_boxes = random_boxes(num_gt, generator).to(dtype)
    boxes = random_boxes(20_000, generator).to(dtype)
    ours = Matcher(0.7, 0.3, True)(gt_boxes, boxes)
    assert torch.equal(ours, torchvision_matches(gt_boxes, boxes, 0.7, 0.3, True))
    assert (ours >= 0).sum() >= num_gt


def test_ground_truth_without_overlap_makes_every_box_a_low_quality_match():
    # As in torchvision: the highest IoU of the second ground truth is 0, and every box has it.
    gt_boxes = torch.tensor([[0.0, 0, 10, 10], [500, 500, 510, 510]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [100, 100, 110, 110]])
    ours = Matcher(0.7, 0.3, True)(gt_boxes, boxes)
    assert ours.tolist() == [0, 0]
    assert torch.equal(ours, torchvision_matches(gt_boxes, boxes, 0.7, 0.3, True))


def test_low_quality_match_keeps_the_ground_truth_it_overlaps_most():
    gt_boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 60, 100]])  # best match of both, overlaps the first more
    assert Matcher(0.7, 0.3, True)(gt_boxes, boxes).tolist() == [0]
    assert Matcher(0.7, 0.3, False)(gt_boxes, boxes).tolist() == [Matcher.BETWEEN_THRESHOLDS]


@pytest.mark.parametrize("num_gt, num_boxes", [(0, 5), (3, 0), (0, 0)])
def test_empty(num_gt, num_boxes):
    boxes = torch.tensor([[0.0, 0, 5, 5]]).expand(num_boxes, 4)
    matches = Matcher(0.7, 0.3, True)(torch.ones(num_gt, 4), boxes)
    assert matches.dtype == torch.int64
    assert matches.tolist() == [Matcher.BELOW_LOW_THRESHOLD] * num_boxes


def test_thresholds_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"low_threshold \(0.7\)"):
        Matcher(0.3, 0.7)


def test_gather_matched_boxes():
    gt_boxes, boxes = torch.arange(8.0).view(2, 4), torch.rand(3, 4)
    matched = gather_matched_boxes(gt_boxes, torch.tensor([1, -1, -2]), boxes)
    assert torch.equal(matched, gt_boxes[[1, 0, 0]])
    no_gt = gather_matched_boxes(torch.zeros(0, 4), torch.full((3,), -1), boxes)
    assert torch.equal(no_gt, boxes)
