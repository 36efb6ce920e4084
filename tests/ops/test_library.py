"""What all operators have in common: schemas, fake tensors, export, builds, instruction sets."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import _library, reference
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.ops.group_offset import offset_boxes_by_group
from maskrcnn_scratch.ops.reference.nms import _round_down
from tests.ops.inputs import random_boxes, random_rois, random_scores, rows_in_tables
from tests.ops.test_direct_calls import arguments_of

OPS = torch.ops.maskrcnn_scratch


def features(requires_grad: bool = False, **options) -> list[Tensor]:
    maps = [torch.randn(2, 3, 16, 20, **options), torch.randn(2, 3, 8, 10, **options)]
    return [feature.requires_grad_(requires_grad) for feature in maps]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("count", [0, 6])
def test_opcheck_roi_align(count: int, channels_last: bool) -> None:
    rois, levels = random_rois(count, 2, 32, 40), torch.arange(count) % 2
    arguments = (rois, levels, [0.5, 0.25], 3, 2, 2, False, channels_last)
    torch.library.opcheck(OPS.multiscale_roi_align, (features(True), *arguments))
    torch.library.opcheck(OPS.multiscale_roi_align, (features(dtype=torch.bfloat16), *arguments))
    grad = torch.randn(count, 3, 3, 2)
    sizes = ([16, 8], [20, 10], 2)
    arguments = (rois, levels, [0.5, 0.25], *sizes, 2, False, channels_last, False)
    torch.library.opcheck(OPS.multiscale_roi_align_backward, (grad, *arguments))


@pytest.mark.parametrize("count", [0, 1, 20])
def test_opcheck_nms_and_paste(count: int) -> None:
    boxes, scores = random_boxes(2 * count, 30, 60), random_scores(2 * count)
    groups = torch.arange(2 * count).reshape(2, count) % 3
    arguments = (boxes.reshape(2, count, 4), scores.reshape(2, count), groups, 0.5, 7, 3)
    torch.library.opcheck(OPS.nms_padded, arguments)
    torch.library.opcheck(OPS.nms_padded, (*arguments, 5))
    torch.library.opcheck(OPS.paste_masks, (torch.rand(2 * count, 1, 5, 5), boxes, 40, 50))


def test_every_op_has_a_reference() -> None:
    found = [name for name in torch._C._dispatch_get_all_op_names() if "maskrcnn_scratch::" in name]
    assert sorted(found) == [f"maskrcnn_scratch::{name}" for name in reference.__all__]


class Pipeline(torch.nn.Module):
    """RoIAlign, offset, padded NMS and pasting, in the order of a detector."""

    def forward(self, p2: Tensor, p3: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        images, candidates = scores.shape
        groups = torch.arange(candidates, device=boxes.device).expand(images, -1) % 3
        shifted = offset_boxes_by_group(boxes, scores, groups, limit=1000)
        indices, count = ops.nms_padded(shifted, scores, groups, 0.5, 6, 3)
        kept = boxes.gather(1, indices[..., None].expand(-1, -1, 4))  # [N, 6, 4]
        index = torch.arange(images, device=boxes.device, dtype=boxes.dtype)
        rois = torch.cat([index.repeat_interleave(6)[:, None], kept.flatten(0, 1)], dim=1)
        pooled = ops.multiscale_roi_align(
            [p2, p3], rois, torch.arange(6).repeat(images) % 2, [0.5, 0.25], 5, 2
        )
        masks = pooled.mean(1, keepdim=True).sigmoid()  # [N * 6, 1, 5, 5]
        size = (2 * p2.shape[2], 2 * p2.shape[3])
        return indices, count, pooled, ops.paste_masks(masks, rois[:, 1:], size)


def pipeline_inputs(images: int, candidates: int, height: int, width: int) -> tuple[Tensor, ...]:
    boxes = random_boxes(images * candidates, 30, 40).reshape(images, candidates, 4)
    scores = random_scores(images * candidates).reshape(images, candidates)
    p2 = torch.randn(images, 3, height, width)
    return p2, p2[:, :, ::2, ::2].contiguous(), boxes, scores


SHAPES = [(2, 30, 16, 20), (3, 50, 24, 16), (5, 9, 12, 30)]


def assert_same(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_exports_with_dynamic_shapes() -> None:
    images, candidates = (
        torch.export.Dim("N", min=1, max=64),
        torch.export.Dim("K", min=1, max=100_000),
    )
    half_height = torch.export.Dim("H", min=2, max=500)
    half_width = torch.export.Dim("W", min=2, max=500)
    exported = torch.export.export(
        Pipeline(),
        pipeline_inputs(*SHAPES[0]),
        dynamic_shapes=(
            {0: images, 2: 2 * half_height, 3: 2 * half_width},
            {0: images, 2: half_height, 3: half_width},
            {0: images, 1: candidates},
            {0: images, 1: candidates},
        ),
    ).module()
    for shape in SHAPES:
        inputs = pipeline_inputs(*shape)
        assert_same(exported(*inputs), Pipeline()(*inputs))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic: bool) -> None:
    compiled = torch.compile(Pipeline(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for shape in SHAPES[: 2 if dynamic else 1]:
        inputs = [x.requires_grad_(x.dim() == 4) for x in pipeline_inputs(*shape)]
        outputs, expected = compiled(*inputs), Pipeline()(*inputs)
        assert_same(outputs, expected)
        grads = [torch.autograd.grad(o[2].square().sum(), inputs[:2]) for o in (outputs, expected)]
        assert_same(*grads)


def test_nms_exports_with_a_size_that_depends_on_the_data() -> None:
    class Suppress(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor, idxs: Tensor) -> tuple[Tensor, Tensor]:
            return ops.nms(boxes, scores, 0.5), ops.batched_nms(boxes, scores, idxs, 0.5)

    def inputs(count: int) -> tuple[Tensor, ...]:
        return random_boxes(count, 60, 100), random_scores(count), torch.arange(count) % 4

    count = torch.export.Dim("K", min=2, max=100_000)
    exported = torch.export.export(Suppress(), inputs(50), dynamic_shapes=({0: count},) * 3)
    for number in (20, 1500):
        assert_same(exported.module()(*inputs(number)), Suppress()(*inputs(number)))


@functools.cache
def digest() -> str:
    """Hash of all results, for inputs that reach the vector and the scalar code of the kernels."""
    torch.manual_seed(0)
    outputs = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            feature = torch.randn(1, 37, 30, 40).to(dtype).contiguous(memory_format=memory_format)
            feature.requires_grad_()
            for ratio in (2, -1):
                pooled = ops.roi_align(feature, random_rois(30, 1, 120, 160), 7, 0.25, ratio)
                outputs += [pooled, *torch.autograd.grad(pooled.square().sum(), feature)]
    for dtype in (torch.float32, torch.float64):
        boxes, scores = random_boxes(700, 50, 200).to(dtype), random_scores(700).to(dtype)
        outputs.append(ops.nms(boxes, scores, 0.5))
        outputs += ops.max_iou(boxes[:40], boxes, True)
        sides = torch.tensor([[150, 180]])
        rows = rows_in_tables(torch.randn(1, 700, 4).to(dtype), boxes[None])
        outputs += ops.decode_boxes(BoxCoder((1, 1, 1, 1)), *rows, sides, 9.0)
        outputs.append(ops.top_k_of_levels(torch.randn(2, 9_000).to(dtype), [5_000, 4_000], 90))
    pasting = torch.rand(9, 1, 28, 28), random_boxes(9, 80, 90), (99, 91)
    outputs += [ops.paste_masks(*pasting), ops.paste_masks_packed(*pasting).view(torch.uint8)]
    # float64 holds every value of the other types.
    data = b"".join(output.detach().double().numpy().tobytes() for output in outputs)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_instruction_sets_agree_to_the_bit(isa: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from tests.ops.test_library import digest; print(digest())"],
        env={**os.environ, "MASKRCNN_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == digest()


@pytest.mark.parametrize("name", _library.OPS)
def test_devices_without_kernels_run_the_references_and_warn_once(name: str, monkeypatch) -> None:
    """As on ``mps``: the dispatcher is told that the tensors are there."""
    _library._warn_without_kernels.cache_clear()
    op, arguments = getattr(torch.ops.maskrcnn_scratch, name).default, arguments_of(name)
    expected = getattr(reference, name)(**arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            result = op.redispatch(DispatchKeySet(DispatchKey.MPS), **arguments)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    (warning,) = (str(warning.message) for warning in caught)
    assert "no kernels for mps" in warning and "\n" not in warning


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_reference_of_nms_does_not_round_the_threshold(dtype: torch.dtype) -> None:
    iou = torch.tensor(0.7, dtype=dtype)  # in float32 it is a little less than 0.7
    for near in (torch.nextafter(iou, iou * 0), iou, torch.nextafter(iou, iou * 2)):
        for threshold in (0.7, 0.3, 0.1):
            expected = near.double().item() > threshold
            assert (near > _round_down(threshold, dtype)).item() == expected


WITHOUT_KERNELS = """
import sys, warnings
sys.modules["maskrcnn_scratch._cpu"] = None  # as if never built
import torch
from maskrcnn_scratch import ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    feature = torch.randn(2, 3, 9, 9, requires_grad=True)
    rois = torch.tensor([[0.0, 1, 1, 6, 6], [1, 0, 0, 8, 8]])
    ops.roi_align(feature, rois, 3).sum().backward()
    keep = ops.nms(rois[:, 1:], torch.tensor([0.5, 0.9]), 0.3)
    ops.paste_masks(torch.ones(2, 1, 5, 5), rois[:, 1:], (9, 9))
print(len(caught), "without kernels" in str(caught[0].message), keep.tolist(), feature.grad.sum())
"""


@pytest.mark.slow
def test_runs_without_kernels_and_warns_once() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERNELS], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "1 True [1] tensor(54.)"
