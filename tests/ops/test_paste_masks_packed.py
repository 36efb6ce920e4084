"""Pasting to bits and to COCO RLE: what the soft paste gives at a threshold, pixel for pixel."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import reference, rle
from tests.ops.inputs import random_boxes

OP = torch.ops.maskrcnn_scratch.paste_masks_packed
AWKWARD = [
    [math.nan, 0.0, 10.0, 10.0],
    [0.0, 0.0, math.inf, 10.0],
    [5.0, 5.0, 5.0, 5.0],  # one pixel
    [9.0, 9.0, 3.0, 3.0],  # inside out
    [-100.0, -100.0, 300.0, 300.0],
    [-50.0, -50.0, -20.0, -20.0],
    [290.0, 290.0, 300.0, 300.0],
    [1e18, 1e18, 2e18, 2e18],
    [0.0, 0.0, 1e30, 1e30],
    [0.0, 60.0, 9.0, 68.0],  # crosses from one word to the next
]


def unpack(packed: Tensor, height: int) -> Tensor:
    """int64 ``[N, W, words]`` -> bool ``[N, H, W]``, as the docstring says."""
    pixels = [packed[:, :, y // 64] >> (y % 64) & 1 for y in range(64 * packed.shape[2])]
    columns = torch.stack(pixels, -1) if pixels else packed  # [N, W, words * 64]
    assert not columns[:, :, height:].any()
    return columns[:, :, :height].transpose(1, 2).bool()


def check(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    packed = ops.paste_masks_packed(masks, boxes, size, threshold)
    assert packed.dtype == torch.int64
    on = ops.paste_masks(masks, boxes, size)[:, 0] >= threshold
    assert torch.equal(unpack(packed, size[0]), on)
    return on


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("box_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (63, 40), (64, 50), (65, 3), (130, 99)], ids=str)
def test_is_the_soft_paste_at_a_threshold(size, box_dtype, dtype) -> None:
    masks = torch.rand(20, 1, 28, 28, dtype=dtype)
    boxes = (random_boxes(20, 80, 100) - 20).to(box_dtype)
    for threshold in (0.1, 0.5, 0.77):
        check(masks, boxes, size, threshold)


@pytest.mark.parametrize("height", [40, 64, 100, 128, 200])
def test_awkward_boxes(height: int) -> None:
    boxes = torch.tensor(AWKWARD)
    on = check(torch.ones(len(boxes), 1, 14, 14), boxes, (height, 70))
    assert on[4].all() and not on[0].any() and not on[5].any()


def test_a_pixel_at_the_threshold_is_on() -> None:
    on = check(torch.full((1, 1, 4, 4), 0.5), torch.tensor([[0.0, 0, 40, 40]]), (40, 40))
    assert on[0, 20, 20]


def test_empty_and_strided() -> None:
    for count, height, width in ((0, 9, 7), (2, 0, 7), (2, 9, 0)):
        packed = ops.paste_masks_packed(
            torch.zeros(count, 1, 28, 28), torch.zeros(count, 4), (height, width)
        )
        assert packed.shape == (count, width, -(-height // 64))
    masks = torch.rand(28, 28, 1, 6).permute(3, 2, 0, 1)[::2]
    check(masks, random_boxes(4, 40, 60)[:1].expand(3, 4), (90, 100))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    masks, boxes = torch.rand(5, 1, 14, 14).to(dtype), random_boxes(5, 60, 80)
    expected = ops.paste_masks_packed(masks.float(), boxes, (90, 100))
    assert torch.equal(ops.paste_masks_packed(masks, boxes, (90, 100)), expected)


def test_reference_differs_at_most_where_rounding_decides() -> None:
    masks, boxes, size = torch.rand(30, 1, 28, 28), random_boxes(30, 90, 150) - 10, (120, 170)
    boxes[: len(AWKWARD)] = torch.tensor(AWKWARD)
    ours = unpack(ops.paste_masks_packed(masks, boxes, size), size[0])
    theirs = unpack(reference.paste_masks_packed(masks, boxes, *size, 0.5), size[0])
    soft = ops.paste_masks(masks, boxes, size)[:, 0]
    assert ours.any()
    assert ((soft - 0.5).abs()[ours != theirs] < 1e-5).all()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_opcheck(count: int) -> None:
    arguments = (random_boxes(count, 30, 60), 70, 50, 0.5)
    torch.library.opcheck(OP, (torch.rand(count, 1, 5, 5), *arguments))
    torch.library.opcheck(OP, (torch.rand(count, 1, 5, 5, requires_grad=True), *arguments))


def test_exports_with_dynamic_shapes() -> None:
    class Paste(torch.nn.Module):
        def forward(self, masks: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
            return ops.paste_masks_packed(masks, boxes, (image.shape[0], image.shape[1]))

    def inputs(count: int, height: int, width: int) -> tuple[Tensor, ...]:
        return torch.rand(count, 1, 9, 9), random_boxes(count, 60, 80), torch.zeros(height, width)

    count = torch.export.Dim("N", min=1, max=1000)
    # torch.export knows no size that may be one or more, here the words of a column.
    size = {0: torch.export.Dim("H", min=65, max=5000), 1: torch.export.Dim("W", min=2, max=5000)}
    exported = torch.export.export(
        Paste(), inputs(3, 100, 90), dynamic_shapes=({0: count}, {0: count}, size)
    ).module()
    for shape in ((3, 100, 90), (5, 128, 40), (1, 300, 7)):
        given = inputs(*shape)
        assert torch.equal(exported(*given), Paste()(*given))


coordinate = st.one_of(
    st.floats(-60, 200, width=32), st.floats(width=32, allow_nan=True, allow_infinity=True)
)


@settings(max_examples=100, deadline=None)
@given(
    boxes=st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 140), st.integers(1, 40)),
    side=st.integers(1, 9),
    threshold=st.floats(0.0625, 1, width=32),
    hard=st.booleans(),
)
def test_any_box(boxes, size, side, threshold, hard) -> None:
    masks = torch.rand(len(boxes), 1, side, side)
    masks, boxes = masks.round() if hard else masks, torch.tensor(boxes)
    on = check(masks, boxes, size, threshold)
    expected = [rle.encode(mask.numpy()) for mask in on]
    packed = ops.paste_masks_packed(masks, boxes, size, threshold)
    assert rle.from_packed(packed.numpy(), size) == expected
    assert ops.paste_masks_rle(masks, boxes, size, threshold) == expected


@given(
    st.integers(1, 200), st.integers(1, 6), st.sampled_from([0, 0.02, 0.5, 1]), st.integers(0, 999)
)
def test_runs_of_any_bits(height: int, width: int, share: float, seed: int) -> None:
    on = np.random.default_rng(seed).random((2, height, width)) < share  # [D, H, W]
    filled = np.zeros((2, width, -(-height // 64) * 64), bool)
    filled[:, :, :height] = on.transpose(0, 2, 1)
    packed = np.packbits(filled, axis=2, bitorder="little").view(np.int64)  # [D, W, words]
    for num_threads in (1, 2):
        encoded = rle.from_packed(packed, (height, width), num_threads)
        assert encoded == [rle.encode(mask) for mask in on]


@pytest.mark.slow
def test_rle_of_no_masks_and_of_half_masks() -> None:
    assert ops.paste_masks_rle(torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), (9, 7)) == []
    masks, boxes = torch.rand(5, 1, 14, 14, requires_grad=True).half(), random_boxes(5, 60, 80)
    expected = ops.paste_masks_rle(masks.float(), boxes.double(), (90, 100))
    assert ops.paste_masks_rle(masks, boxes, (90, 100)) == expected


# Peak memory is that of the whole process: it must be a fresh one.
MEMORY = """
import resource
import torch
from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import rle

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB

def paste(size):
    corner = torch.rand(100, 2) * torch.tensor([size[1], size[0]]) * 0.5
    boxes = torch.cat([corner, corner + torch.tensor([size[1], size[0]]) * 0.4], 1)
    return ops.paste_masks_rle(torch.rand(100, 1, 7, 7).round(), boxes, size)

paste((80, 40))
before = peak()
encoded = paste((8000, 4000))
print(peak() - before, sum(rle.area(mask) for mask in encoded))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units")
def test_rle_of_a_large_image_takes_little_memory() -> None:
    """100 detections on 8000 x 4000: 12.8 GB as floats, 400 MB as bits."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    grown, pixels = map(float, result.stdout.split())
    assert pixels > 1e7
    assert grown < 100


@pytest.mark.parametrize(
    "masks, boxes, size, threshold, message",
    [
        (torch.zeros(2, 28, 28), torch.zeros(2, 4), (9, 9), 0.5, r"masks must be \[D, 1, M, M\]"),
        (torch.zeros(2, 1, 9, 9), torch.zeros(3, 4), (9, 9), 0.5, r"boxes must be \[D, 4\]"),
        (torch.zeros(2, 1, 9, 9), torch.zeros(2, 4), (-1, 9), 0.5, "must not be negative"),
        (torch.zeros(2, 1, 9, 9), torch.zeros(2, 4), (9, 9), 0.0, "threshold must be above 0"),
        (torch.zeros(2, 1, 9, 9), torch.zeros(2, 4), (9, 9), math.nan, "threshold must be above 0"),
        (torch.zeros(2, 1, 9, 9).int(), torch.zeros(2, 4), (9, 9), 0.5, "masks must be float32"),
        (torch.zeros(2, 1, 9, 9), torch.zeros(2, 4).int(), (9, 9), 0.5, "boxes must be float32"),
    ],
)
def test_bad_arguments_are_named(masks, boxes, size, threshold, message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as error:
        ops.paste_masks_packed(masks, boxes, size, threshold)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "masks, boxes, size, threshold, message",
    [
        (torch.zeros(2, 28, 28), torch.zeros(2, 4), (9, 9), 0.5, r"masks must be \[D, M, M\]"),
        (torch.zeros(2, 3, 9, 9), torch.zeros(2, 4), (9, 9), 0.5, r"boxes must be \[6, 4\]"),
        (torch.zeros(2, 1, 9, 9), torch.zeros(2, 4), (0, 9), 0.5, "0 x 9 is empty"),
        (torch.zeros(2, 1, 9, 9), torch.zeros(2, 4), (9, 9), math.nan, "threshold must be above 0"),
    ],
)
def test_bad_arguments_of_rle_are_named(masks, boxes, size, threshold, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.paste_masks_rle(masks, boxes, size, threshold)


def test_packed_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"packed masks must be \[D, 9, 2\]"):
        rle.from_packed(np.zeros((1, 9, 1), np.int64), (65, 9))
