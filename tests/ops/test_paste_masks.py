from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.parity.bilinear import bilinear_bound
from tests.ops.inputs import random_boxes

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("side", [1, 7, 28])
@pytest.mark.parametrize("box_side", [3, 30, 200])  # smaller and larger than the mask
def test_is_torchvisions(box_side: int, side: int) -> None:
    masks = torch.rand(40, 1, side, side)
    boxes = random_boxes(40, box_side, 110) - 2  # some reach beyond the image
    pasted = ops.paste_masks(masks, boxes, (120, 170))
    # In float64: torchvision's float32 result depends on the instruction set (parity.bilinear).
    expected = paste_masks_in_image(masks.double(), boxes, (120, 170))
    bound = bilinear_bound(F.pad(masks, (1, 1, 1, 1)))
    torch.testing.assert_close(pasted.double(), expected, atol=bound, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_the_reference(dtype: torch.dtype, tolerance: float) -> None:
    # The matrix product weighs a pixel by 1 - |distance|, which cancels a few bits more.
    masks = torch.rand(30, 1, 28, 28, dtype=dtype)
    boxes = random_boxes(30, 90, 150).to(dtype) - 10
    boxes[0] = torch.tensor([-40.0, -40, -20, -20])  # outside
    boxes[1] = torch.tensor([50.0, 50, 40, 40])  # inside out
    boxes[2:7] = torch.tensor([NAN, INF, -INF, 1e30, 0])[:, None].to(dtype)
    pasted = ops.paste_masks(masks, boxes, (120, 170))
    expected = reference.paste_masks(masks, boxes, 120, 170)
    torch.testing.assert_close(pasted, expected, atol=tolerance, rtol=0)
    assert not pasted[0].any() and not pasted[2:6].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    masks, boxes = torch.rand(10, 1, 14, 14).to(dtype), random_boxes(10, 60, 80)
    expected = ops.paste_masks(masks.float(), boxes, (90, 100)).to(dtype)
    assert torch.equal(ops.paste_masks(masks, boxes, (90, 100)), expected)
    assert ops.paste_masks(masks, boxes.to(dtype), (90, 100)).dtype == dtype


def test_empty_and_strided() -> None:
    assert ops.paste_masks(torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), (9, 7)).shape == (
        0,
        1,
        9,
        7,
    )
    assert ops.paste_masks(torch.zeros(2, 1, 28, 28), torch.zeros(2, 4), (0, 7)).shape == (
        2,
        1,
        0,
        7,
    )
    masks, boxes = torch.rand(4, 1, 28, 28), random_boxes(4, 60, 80)
    strided = ops.paste_masks(masks.transpose(2, 3), boxes.t().contiguous().t(), (90, 100))
    assert torch.equal(
        strided, ops.paste_masks(masks.transpose(2, 3).contiguous(), boxes, (90, 100))
    )


def test_untouched_pixels_take_no_memory_and_indices_exceed_32_bits() -> None:
    side = 47_000  # 2.2e9 pixels: 4.4 GB if they were all written
    boxes = torch.tensor([[side - 40.0, side - 30.0, side - 10.0, side - 5.0]])
    image = ops.paste_masks(torch.ones(1, 1, 28, 28, dtype=torch.float16), boxes, (side, side))
    assert image[0, 0, side - 20, side - 20] == 1
    # The same memory as a feature map that RoIAlign reads beyond 2^31 elements.
    rois = torch.tensor([[0.0, side - 30.0, side - 25.0, side - 20.0, side - 15.0]])
    assert torch.equal(ops.roi_align(image, rois, 2, 1.0, 2), torch.ones(1, 1, 2, 2).half())


@pytest.mark.parametrize(
    "masks, boxes, size, message",
    [
        (torch.zeros(2, 28, 28), torch.zeros(2, 4), (9, 9), r"masks must be \[D, 1, M, M\]"),
        (torch.zeros(2, 1, 28, 27), torch.zeros(2, 4), (9, 9), r"masks must be \[D, 1, M, M\]"),
        (torch.zeros(2, 1, 28, 28), torch.zeros(3, 4), (9, 9), r"boxes must be \[D, 4\]"),
        (torch.zeros(2, 1, 28, 28), torch.zeros(2, 4), (-1, 9), "must not be negative"),
        (torch.zeros(2, 1, 28, 28).int(), torch.zeros(2, 4), (9, 9), "masks must be float32"),
        (torch.zeros(2, 1, 28, 28), torch.zeros(2, 4).int(), (9, 9), "boxes must be float32"),
    ],
)
def test_bad_arguments_are_named(masks, boxes, size, message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as error:
        ops.paste_masks(masks, boxes, size)
    assert "\n" not in str(error.value)
