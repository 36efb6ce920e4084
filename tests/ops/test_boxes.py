"""Box geometry against torchvision's, for each type and format."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops as reference
from torch import Tensor

from maskrcnn_scratch import MultiScaleRoIAlign
from maskrcnn_scratch.ops.boxes import box_area, box_iou
from maskrcnn_scratch.ops.nms import batched_nms

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64]  # uint8 wraps in torchvision


def random_boxes(*shape: int, dtype: torch.dtype, largest: float = 300.0) -> Tensor:
    if not dtype.is_floating_point:
        largest = min(largest, torch.iinfo(dtype).max)
    corners = torch.rand(*shape, 2) * largest / 2
    return torch.cat((corners, corners + torch.rand(*shape, 2) * largest / 2), dim=-1).to(dtype)


@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_areas_and_ious_equal_torchvisions(dtype: torch.dtype, fmt: str) -> None:
    torch.manual_seed(0)
    # Halves, so that no corner of xywh or cxcywh overflows a small integer.
    boxes1 = random_boxes(20, dtype=dtype, largest=120)
    boxes2 = random_boxes(30, dtype=dtype, largest=120)
    if not dtype.is_floating_point:
        boxes1, boxes2 = boxes1 // 2, boxes2 // 2
    area, expected = box_area(boxes1, fmt), reference.box_area(boxes1, fmt)
    assert area.dtype == expected.dtype
    assert torch.equal(area, expected)
    iou, expected = box_iou(boxes1, boxes2, fmt), reference.box_iou(boxes1, boxes2, fmt)
    assert iou.dtype == expected.dtype
    assert torch.equal(iou, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int16, torch.int8])
def test_products_do_not_overflow(dtype: torch.dtype) -> None:
    side = 100 if dtype == torch.int8 else 300
    boxes = torch.tensor([[0, 0, side, side], [0, 0, side, side * 4 // 5]], dtype=dtype)
    assert box_area(boxes).tolist() == [side**2, side**2 * 4 // 5]
    torch.testing.assert_close(box_iou(boxes[:1], boxes[1:]), torch.tensor([[0.8]]))


def test_unsigned_integers_do_not_wrap() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [20, 0, 30, 10]], dtype=torch.uint8)
    assert torch.equal(box_iou(boxes, boxes), torch.eye(2))


def test_batches_of_boxes() -> None:
    torch.manual_seed(0)
    boxes1 = random_boxes(2, 3, 20, dtype=torch.float32)
    boxes2 = random_boxes(2, 3, 30, dtype=torch.float32)
    iou = box_iou(boxes1, boxes2)
    assert iou.shape == (2, 3, 20, 30)
    assert torch.equal(iou, reference.box_iou(boxes1, boxes2))
    assert torch.equal(iou[1, 2], box_iou(boxes1[1, 2], boxes2[1, 2]))
    assert box_iou(boxes1[0, 0, :0], boxes2[0, 0]).shape == (0, 30)


@pytest.mark.parametrize("function", [box_area, lambda boxes, fmt: box_iou(boxes, boxes, fmt)])
def test_an_unknown_format_is_named(function) -> None:
    with pytest.raises(ValueError, match="fmt is 'yxyx'"):
        function(torch.rand(2, 4), "yxyx")


@pytest.mark.parametrize("shape", [(0,), (0, 4)])
def test_nms_of_no_boxes(shape: tuple[int, ...]) -> None:
    keep = batched_nms(torch.zeros(shape), torch.zeros(0), torch.zeros(0).long(), 0.5)
    assert keep.dtype == torch.int64
    assert keep.shape == (0,)


@pytest.mark.parametrize("dtype", FLOATS)
def test_levels_of_large_boxes(dtype: torch.dtype) -> None:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    boxes = torch.tensor([[0.0, 0, side, side] for side in (100, 300, 1000)], dtype=dtype)
    assert pool.map_levels(boxes, [1 / 4, 1 / 8, 1 / 16, 1 / 32]).tolist() == [0, 2, 3]
