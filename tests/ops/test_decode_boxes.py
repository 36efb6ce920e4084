"""Decoding of the model's boxes: torchvision's steps, by the kernel and by the reference."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder as TheirBoxCoder

from maskrcnn_scratch import ops
from maskrcnn_scratch.call_part import decode_boxes
from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops.boxes import BoxCoder
from tests.no_sync import fake_gpu
from tests.ops.inputs import random_boxes, rows_in_tables

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SIZES = torch.tensor([[90, 120], [60, 70]])


def problem(count: int = 300):
    deltas = 3 * torch.randn(2, count, 4, generator=torch.Generator().manual_seed(0))
    return deltas, random_boxes(2 * count, 80, 90).reshape(2, count, 4)


def decode(weights, deltas, references, min_size):
    rows = rows_in_tables(deltas, references)
    return ops.decode_boxes(BoxCoder(weights), *rows, SIZES, min_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torchvisions_steps(dtype) -> None:
    deltas, references = (tensor.to(dtype) for tensor in problem())
    boxes, is_large = decode(WEIGHTS, deltas, references, 20.0)
    for n in range(2):
        decoded = TheirBoxCoder(WEIGHTS).decode(deltas[n], [references[n]])[:, 0]
        clipped = torchvision.ops.clip_boxes_to_image(decoded, tuple(SIZES[n].tolist()))
        assert torch.equal(boxes[n], clipped)
        large = torchvision.ops.remove_small_boxes(clipped, 20.0)
        assert 0 < len(large) < 300
        assert torch.equal(is_large[n].nonzero()[:, 0], large)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 300, 20_000])
def test_kernel_has_the_bits_of_the_reference(count, dtype) -> None:
    """Also where a side reaches its limit, and where deltas or references are not finite."""
    deltas, references = (tensor.to(dtype) for tensor in problem(count))
    for i, value in enumerate((math.inf, -math.inf, math.nan, 1e30, -0.0)):
        deltas[0, i::11, i % 4] = value
        references[1, i::13, i % 4] = value
    for weights, min_size in ((WEIGHTS, 20.0), ((1.0, 1.0, 1.0, 1.0), 1e-3)):
        boxes, is_large = decode(weights, deltas, references, min_size)
        rows = rows_in_tables(deltas, references)
        arguments = (*rows, SIZES, weights, BoxCoder(weights).bbox_xform_clip, min_size)
        expected, expected_large = reference.decode_boxes(*arguments)
        torch.testing.assert_close(boxes, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(is_large, expected_large)
        assert count < 300 or 0 < is_large.sum() < is_large.numel()


def test_strided_values() -> None:
    deltas, references = problem()
    rows = rows_in_tables(deltas, references)
    expected = ops.decode_boxes(BoxCoder(WEIGHTS), *rows, SIZES, 1.0)
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in rows]
    assert not strided[0].is_contiguous() and not strided[1].is_contiguous()
    boxes, _ = ops.decode_boxes(BoxCoder(WEIGHTS), *strided, SIZES, 1.0)
    assert torch.equal(boxes, expected[0])


@pytest.mark.parametrize("needs_grad", [False, True])
def test_references_of_all_images(needs_grad: bool) -> None:
    """The anchors: one table that all images share. By the kernel, and by the reference."""
    deltas, references = problem()
    table, indices, anchors, anchor_indices = rows_in_tables(deltas, references)
    table.requires_grad_(needs_grad)
    coder = BoxCoder(WEIGHTS)
    shared = (table, indices, anchors[:1], anchor_indices[:1].expand(2, -1), SIZES, 1.0)
    every = (table, indices, anchors[:1].expand(2, -1, -1), *shared[3:])
    boxes, is_large = ops.decode_boxes(coder, *shared)
    expected, expected_large = ops.decode_boxes(coder, *every)
    assert torch.equal(boxes, expected) and torch.equal(is_large, expected_large)


def test_different_dtypes_take_the_reference() -> None:
    deltas, references = problem()
    rows = rows_in_tables(deltas, references.half())
    boxes, is_large = ops.decode_boxes(BoxCoder(WEIGHTS), *rows, SIZES, 1.0)
    clip = BoxCoder(WEIGHTS).bbox_xform_clip
    expected = reference.decode_boxes(*rows, SIZES, WEIGHTS, clip, 1.0)
    assert torch.equal(boxes, expected[0]) and torch.equal(is_large, expected[1])


@pytest.mark.parametrize("count", [0, 5])
def test_opcheck(count) -> None:
    rows = rows_in_tables(*problem(count))
    arguments = (*rows, SIZES, list(WEIGHTS), 4.0, 1.0)
    torch.library.opcheck(torch.ops.maskrcnn_scratch.decode_boxes, arguments)


def test_gradient() -> None:
    deltas, references = problem(3)
    deltas.requires_grad_()
    boxes, is_large = decode(WEIGHTS, deltas, references, 1.0)
    boxes.sum().backward()
    assert deltas.grad.norm() > 0 and not is_large.requires_grad


def test_nan_is_not_large() -> None:
    deltas, references = problem(4)
    deltas[:, 0, 1] = math.nan
    boxes, is_large = decode(WEIGHTS, deltas, references, 0.0)
    assert boxes[:, 0, 1].isnan().all() and not is_large[:, 0].any() and is_large[:, 1:].any()


def test_another_box_coder_decodes_itself() -> None:
    class Shift(BoxCoder):
        def decode(self, deltas, references):
            return references + 50

    deltas, references = problem(5)
    rows = rows_in_tables(deltas, references)
    boxes, is_large = decode_boxes(Shift(WEIGHTS), *rows, SIZES, 1.0)
    limits = SIZES.flip(1).repeat(1, 2)[:, None]
    assert torch.equal(boxes, torch.minimum(references + 50, limits))
    assert is_large.shape == (2, 5)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_kernel_where_no_gradient_is_needed(needs_grad, monkeypatch) -> None:
    """Its fake tensors have the shapes and dtypes of the reference implementation's."""
    called = []
    compose = reference.decode_boxes
    monkeypatch.setattr(
        reference, "decode_boxes", lambda *a: called.append("reference") or compose(*a)
    )
    with fake_gpu():
        deltas = torch.zeros(2, 9, 4, device="cuda", requires_grad=needs_grad)
        references, sizes = torch.zeros(1, 8, 4, device="cuda"), torch.zeros(2, 2, device="cuda")
        indices = torch.zeros(2, 7, device="cuda", dtype=torch.int64)
        arguments = (deltas, indices, references, indices, sizes.long(), 1.0)
        boxes, is_large = ops.decode_boxes(BoxCoder(WEIGHTS), *arguments)
    assert len(called) == needs_grad
    assert boxes.shape == (2, 7, 4) and boxes.dtype == torch.float32
    assert is_large.shape == (2, 7) and is_large.dtype == torch.bool
