"""Levels of the pyramid: those of torchvision's ``LevelMapper``."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops.poolers import LevelMapper

from maskrcnn_scratch import ops
from tests.no_sync import fake_gpu
from tests.ops.inputs import random_boxes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torchvisions_levels(dtype) -> None:
    sides = torch.arange(1, 900).to(dtype)
    squares = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    boxes = torch.cat([squares, random_boxes(3000, 1200, 300).to(dtype)])
    for finest, coarsest, scale, level in ((2, 5, 224, 4), (3, 4, 100, 3)):
        expected = LevelMapper(finest, coarsest, scale, level)([boxes])
        assert torch.equal(ops.fpn_levels(boxes, finest, coarsest, scale, level), expected)


def test_half_types_are_computed_in_float32() -> None:
    boxes = random_boxes(200, 1200, 300).half()
    assert torch.equal(ops.fpn_levels(boxes, 2, 5), ops.fpn_levels(boxes.float(), 2, 5))


def test_boxes_without_an_area_are_of_the_finest_level() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [9, 1, 3, 3]])
    assert ops.fpn_levels(boxes, 2, 5).tolist() == [0, 0]
    assert ops.fpn_levels(boxes[:0], 2, 5).shape == (0,)


def test_fake_tensors() -> None:
    with fake_gpu():
        levels = ops.fpn_levels(torch.zeros(7, 4, device="cuda"), 2, 5)
    assert levels.shape == (7,) and levels.dtype == torch.int64
