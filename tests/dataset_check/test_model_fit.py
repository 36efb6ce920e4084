"""The fit of data to a model, compared with the model itself."""

import pytest
import torch

from maskrcnn_scratch.builders.from_config import split_over_levels
from maskrcnn_scratch.dataset_check.model_fit import (
    STRIDES,
    Geometry,
    best_anchor_iou,
    fit_model,
    num_anchors,
)
from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.rpn import AnchorGenerator

SIZE = (200, 333)
PADDED = (224, 352)


def all_anchors(geometry):
    grids = [(-(-PADDED[0] // s), -(-PADDED[1] // s)) for s in STRIDES]
    sizes = split_over_levels(geometry.anchor_sizes)
    generator = AnchorGenerator(sizes, geometry.aspect_ratios, strides=STRIDES)
    return generator.grid_anchors(grids, *PADDED, torch.zeros(1))


def random_boxes(count, longest=300):
    generator = torch.Generator().manual_seed(0)
    sides = 2 ** (torch.rand(count, 2, generator=generator) * 7 + 1)
    image = torch.tensor([SIZE[1], SIZE[0]])
    sides = torch.minimum(sides, image)
    low = torch.rand(count, 2, generator=generator) * (image - sides)
    return torch.cat([low, low + sides], 1)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(),
        Geometry(anchor_sizes=(12, 20, 45, 90, 180), aspect_ratios=(0.33, 1.4)),
        Geometry(anchor_sizes=(12, 20, 28, 40, 56, 80, 112, 144, 176, 224)),
    ],
)
def test_best_anchor_is_the_best_of_all(geometry):
    anchors, boxes = all_anchors(geometry), random_boxes(300)
    sizes = torch.tensor([SIZE]).expand(300, 2)
    found = best_anchor_iou(boxes, sizes, geometry)
    assert torch.allclose(found, box_iou(boxes, anchors).amax(1), atol=1e-5)
    assert num_anchors(SIZE, geometry) == len(anchors)


def test_fit():
    boxes = torch.tensor([[10.0, 10, 42, 42], [0, 0, 2, 2], [0, 0, 200, 199], [0, 0, 3, 150]])
    fit = fit_model(boxes, torch.tensor([SIZE] * 4), Geometry())
    assert fit.unmatched == [1, 3]
    assert fit.anchor_iou_histogram == {"0.0-0.3": 2, "0.3-0.5": 0, "0.5-0.7": 1, "0.7-1.0": 1}
    assert fit.roi_levels == {"P2": 3, "P3": 1, "P4": 0, "P5": 0}


def test_suggested_anchors_match_small_objects():
    boxes = random_boxes(200)
    boxes[:, 2:] = boxes[:, :2] + torch.linspace(8, 40, 200)[:, None]
    sizes = torch.tensor([SIZE]).expand(200, 2)
    fit = fit_model(boxes, sizes, Geometry())
    assert fit.suggested_mean_anchor_iou > fit.mean_anchor_iou + 0.1
    assert fit.suggested.anchor_sizes[0] < 20
    assert fit.suggested.min_size == Geometry().min_size


def test_resize_is_the_models():
    assert Geometry().resized(480, 640) == (800, 1066)
    assert Geometry(min_size=400, max_size=500).resized(480, 640) == (375, 500)
