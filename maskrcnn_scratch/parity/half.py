"""Ops on float16 and bfloat16, against torchvision's functions in float64 on the same values.

torchvision has only some of its ops in half precision, and computes others in it, so that its own
result is no reference. The exact one is: the inputs have few digits, but float64 holds them all.
Each note says how far torchvision's function on the half-precision tensors is from it, or that it
has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder as ReferenceBoxCoder
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops.boxes import BoxCoder, box_area, box_iou, clip_boxes_to_image
from maskrcnn_scratch.parity.compare import Check, Inputs, compare
from maskrcnn_scratch.parity.names import PARTS
from maskrcnn_scratch.parity.ops import (
    WEIGHTS,
    boxes_to_paste,
    compare_kept,
    random_boxes,
    random_candidates,
)

DTYPES = (torch.float16, torch.bfloat16)


def half_checks(device: torch.device, parts: Sequence[str] = PARTS["half"]) -> Iterator[Check]:
    """Every op on both dtypes."""
    for part in parts:
        for dtype in DTYPES:
            yield CHECKS[part](dtype, device)


def _check(
    name: str,
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    tensors: dict[str, Tensor],
    roundings: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Check:
    """Compares two functions of ``tensors``, which are first rounded to ``dtype``.

    Args:
        roundings: how many roundings to ``dtype`` are allowed, of the largest value.
    """
    halves = {key: value.to(device, dtype) for key, value in tensors.items()}
    exact = theirs(*(value.double() for value in halves.values()))
    result = ours(*halves.values())
    shown: Inputs = {key: (value, 0) for key, value in halves.items() if value.dim() == 2}
    return compare(
        "half",
        f"{name}, {str(dtype).removeprefix('torch.')}",
        result,
        exact,
        rtol=roundings * torch.finfo(dtype).eps / 2,
        inputs=shown,
        note=_of_torchvision(theirs, halves.values(), exact),
    )


def _of_torchvision(theirs: Callable[..., Any], halves: Any, exact: Tensor) -> str:
    try:
        result = theirs(*halves)
    except (RuntimeError, NotImplementedError):
        return "torchvision has none; against float64"
    if result.shape != exact.shape:
        return f"against float64; torchvision gives {len(result)} instead of {len(exact)}"
    error = float((result.double() - exact).abs().nan_to_num(nan=torch.inf).max())
    return f"torchvision is {error:.0e} from float64"


def _roi_align(dtype: torch.dtype, device: torch.device) -> Check:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 9, 40, 50, generator=generator)
    index = torch.randint(0, 2, (100, 1), generator=generator).float()
    rois = torch.cat((index, random_boxes(100, generator, extent=300.0)), dim=1)
    return _check(
        "roi_align",
        lambda features, rois: ops.roi_align(features, rois, (7, 7), 0.125, 2),
        lambda features, rois: torchvision.ops.roi_align(features, rois, (7, 7), 0.125, 2),
        {"features": features, "rois": rois},
        1,
        dtype,
        device,
    )


def _nms(dtype: torch.dtype, device: torch.device) -> Check:
    return _kept("nms", lambda lib, boxes, scores, _: lib.nms(boxes, scores, 0.5), dtype, device)


def _batched_nms(dtype: torch.dtype, device: torch.device) -> Check:
    return _kept("batched_nms", lambda lib, *given: lib.batched_nms(*given, 0.5), dtype, device)


def _kept(name: str, run: Callable[..., Tensor], dtype: torch.dtype, device: torch.device) -> Check:
    """Kept boxes; compared on boxes of few digits, which float64 shifts without rounding."""
    boxes, scores, groups = random_candidates(900, torch.Generator().manual_seed(0), device)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    exact = run(torchvision.ops, boxes.double(), scores.double(), groups)
    note = _of_torchvision(
        lambda *given: run(torchvision.ops, *given), (boxes, scores, groups), exact
    )
    title = f"{name}, {str(dtype).removeprefix('torch.')}"
    check = compare_kept("half", title, run(ops, boxes, scores, groups), exact, boxes)
    return replace(check, note=check.note or note)


def _paste(dtype: torch.dtype, device: torch.device) -> Check:
    generator = torch.Generator().manual_seed(0)
    boxes = boxes_to_paste(generator)[:20].to(device)  # of float32, as autocast leaves them
    return _check(
        "paste_masks",
        lambda masks: ops.paste_masks(masks, boxes, (333, 450)),
        lambda masks: paste_masks_in_image(masks, boxes, (333, 450)),
        {"masks": torch.rand(20, 1, 28, 28, generator=generator)},
        1,
        dtype,
        device,
    )


def _of_boxes(
    name: str,
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    count: int,
    roundings: float,
) -> Callable[[torch.dtype, torch.device], Check]:
    """The check of a function of ``count`` lists of boxes."""

    def check(dtype: torch.dtype, device: torch.device) -> Check:
        generator = torch.Generator().manual_seed(0)
        names = ("boxes", "others")[:count]
        tensors = {key: random_boxes(100, generator, extent=200.0) for key in names}
        return _check(name, ours, theirs, tensors, roundings, dtype, device)

    return check


def _deltas(boxes: Tensor, others: Tensor) -> Tensor:
    return (boxes - others) / 64


CHECKS: dict[str, Callable[[torch.dtype, torch.device], Check]] = {
    "roi_align": _roi_align,
    "nms": _nms,
    "batched_nms": _batched_nms,
    "paste_masks": _paste,
    "box_area": _of_boxes("box_area", box_area, torchvision.ops.box_area, 1, 1),
    "box_iou": _of_boxes("box_iou", box_iou, torchvision.ops.box_iou, 2, 1),
    "clip_boxes_to_image": _of_boxes(
        "clip_boxes_to_image",
        lambda boxes: clip_boxes_to_image(boxes, (150, 100)),
        lambda boxes: torchvision.ops.clip_boxes_to_image(boxes, (150, 100)),
        1,
        0,
    ),
    "boxcoder_encode": _of_boxes(
        "BoxCoder.encode", BoxCoder(WEIGHTS).encode, ReferenceBoxCoder(WEIGHTS).encode_single, 2, 8
    ),
    "boxcoder_decode": _of_boxes(
        "BoxCoder.decode",
        lambda boxes, others: BoxCoder(WEIGHTS).decode(_deltas(boxes, others), others),
        lambda boxes, others: ReferenceBoxCoder(WEIGHTS).decode_single(
            _deltas(boxes, others), others
        )[:, :4],
        2,
        8,
    ),
}
