"""Checks of single ops on random boxes, some tiny, some reaching beyond the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder as ReferenceBoxCoder
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops.boxes import BoxCoder, box_iou, clip_boxes_to_image
from maskrcnn_scratch.parity.bilinear import paste_check
from maskrcnn_scratch.parity.compare import Check, Inputs, Worst, compare
from maskrcnn_scratch.parity.names import PARTS

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the box coders


def op_checks(device: torch.device, parts: Sequence[str] = PARTS["ops"]) -> Iterator[Check]:
    """RoIAlign, NMS, pasting and box geometry against ``torchvision.ops``."""
    for part in parts:
        yield from CHECKS[part](torch.Generator().manual_seed(0), device)


def random_boxes(count: int, generator: torch.Generator, extent: float = 500.0) -> Tensor:
    """``[count, 4]``: sides from less than a pixel to ``extent``, some reaching beyond it."""
    center = torch.rand(count, 2, generator=generator) * extent
    side = extent ** torch.rand(count, 2, generator=generator)
    return torch.cat((center - side / 2, center + side / 2), dim=1)


def random_candidates(
    count: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``[count, 4]`` that overlap, scores with duplicates, and groups 0 to 4."""
    boxes = random_boxes(count, generator, extent=150.0).clamp(min=0).to(device)
    scores = torch.rand(count, generator=generator).mul(200).round().div(200)
    groups = torch.randint(0, 5, (count,), generator=generator)
    return boxes, scores.to(device), groups.to(device)


def _roi_align(generator: torch.Generator, device: torch.device) -> Iterator[Check]:
    # torchvision's CUDA kernel contracts to fused multiply-adds, which round differently.
    atol = 0.0 if device.type == "cpu" else 1e-5
    features = torch.randn(2, 33, 60, 70, generator=generator).to(device)
    index = torch.randint(0, 2, (300, 1), generator=generator).float()
    rois = torch.cat((index, random_boxes(300, generator)), dim=1).to(device)
    for ratio, aligned, layout in (
        (2, False, torch.channels_last),
        (2, False, torch.contiguous_format),
        (-1, False, torch.channels_last),
        (-1, True, torch.contiguous_format),
        (3, True, torch.channels_last),
    ):
        args = (rois, (7, 5), 0.125, ratio, aligned)
        ours = ops.roi_align(features.contiguous(memory_format=layout), *args)
        theirs = torchvision.ops.roi_align(features, *args)
        name = f"roi_align ratio {ratio} {'NHWC' if layout == torch.channels_last else 'NCHW'}"
        name += " aligned" if aligned else ""
        inputs: Inputs = {"rois": (rois, 0), "features": features, "spatial_scale": 0.125}
        yield compare("ops", name, ours, theirs, atol=atol, inputs=inputs)


def _nms(generator: torch.Generator, device: torch.device) -> Iterator[Check]:
    for count in (50, 900, 3000):
        boxes, scores, _ = random_candidates(count, generator, device)
        theirs = torchvision.ops.nms(boxes, scores, 0.5)
        yield compare_kept("ops", f"nms {count} boxes", ops.nms(boxes, scores, 0.5), theirs, boxes)


def _batched_nms(generator: torch.Generator, device: torch.device) -> Iterator[Check]:
    for count in (50, 900, 3000):  # torchvision uses another method above 1,000 boxes
        boxes, scores, groups = random_candidates(count, generator, device)
        for threshold in (0.3, 0.7):
            ours = ops.batched_nms(boxes, scores, groups, threshold)
            theirs = torchvision.ops.batched_nms(boxes, scores, groups, threshold)
            name = f"batched_nms {count} boxes, IoU {threshold}"
            yield compare_kept("ops", name, ours, theirs, boxes)


def compare_kept(level: str, name: str, ours: Tensor, theirs: Tensor, boxes: Tensor) -> Check:
    """Compares two lists of kept boxes ``[K]``; where they first differ, and the box there.

    Args:
        boxes: ``[B, 4]``, which the lists index.
    """
    check = compare(level, name, ours, theirs)
    if check.passed:
        return check
    shared = min(len(ours), len(theirs))
    differ = (ours[:shared] != theirs[:shared]).nonzero().flatten().tolist()
    at = differ[0] if differ else shared
    values: list[float] = []
    shown: dict[str, str] = {}
    for side, kept in (("ours", ours), ("theirs", theirs)):
        box = int(kept[at]) if at < len(kept) else -1
        values.append(float(box))
        shown[f"box of {side}"] = f"{boxes[box].tolist()}" if box >= 0 else "none"
    note = f"{len(ours)} boxes kept against {len(theirs)}"
    return replace(check, note=note, worst=Worst(f"[{at}]", values[0], values[1], shown))


def _paste(generator: torch.Generator, device: torch.device) -> Iterator[Check]:
    masks = torch.rand(60, 1, 28, 28, generator=generator).to(device)
    boxes = boxes_to_paste(generator).to(device)
    theirs = paste_masks_in_image(masks, boxes, (333, 450))
    ours = ops.paste_masks(masks, boxes, (333, 450))
    yield paste_check("ops", "paste_masks", ours, theirs, masks, boxes, (333, 450))


def boxes_to_paste(generator: torch.Generator) -> Tensor:
    """``[60, 4]``, each at least partly inside 333 x 450 pixels: torchvision fails on others."""
    boxes = clip_boxes_to_image(random_boxes(60, generator), (330, 447))
    return boxes + torch.tensor([-2.5, -2.5, 2.5, 2.5])


def _box_iou(generator: torch.Generator, device: torch.device) -> Iterator[Check]:
    boxes, others = (random_boxes(200, generator).to(device) for _ in range(2))
    inputs: Inputs = {"boxes1": (boxes, 0), "boxes2": (others, 1)}
    theirs = torchvision.ops.box_iou(boxes, others)
    yield compare("ops", "box_iou", box_iou(boxes, others), theirs, inputs=inputs)


def _clip(generator: torch.Generator, device: torch.device) -> Iterator[Check]:
    boxes = random_boxes(200, generator).to(device)
    theirs = torchvision.ops.clip_boxes_to_image(boxes, (300, 400))
    ours = clip_boxes_to_image(boxes, (300, 400))
    yield compare("ops", "clip_boxes_to_image", ours, theirs, inputs={"boxes": (boxes, 0)})


def _encode(generator: torch.Generator, device: torch.device) -> Iterator[Check]:
    boxes, others = (random_boxes(200, generator).to(device) for _ in range(2))
    inputs: Inputs = {"boxes": (boxes, 0), "proposals": (others, 0)}
    theirs = ReferenceBoxCoder(WEIGHTS).encode_single(boxes, others)
    ours = BoxCoder(WEIGHTS).encode(boxes, others)
    yield compare("ops", "BoxCoder.encode", ours, theirs, inputs=inputs)


def _decode(generator: torch.Generator, device: torch.device) -> Iterator[Check]:
    boxes, others = (random_boxes(200, generator).to(device) for _ in range(2))
    deltas = 3 * ReferenceBoxCoder(WEIGHTS).encode_single(boxes, others)
    inputs: Inputs = {"deltas": (deltas, 0), "proposals": (others, 0)}
    theirs = ReferenceBoxCoder(WEIGHTS).decode_single(deltas, others)[:, :4]
    ours = BoxCoder(WEIGHTS).decode(deltas, others)
    yield compare("ops", "BoxCoder.decode", ours, theirs, inputs=inputs)


CHECKS: dict[str, Callable[[torch.Generator, torch.device], Iterator[Check]]] = {
    "roi_align": _roi_align,
    "nms": _nms,
    "batched_nms": _batched_nms,
    "paste_masks": _paste,
    "box_iou": _box_iou,
    "clip_boxes_to_image": _clip,
    "boxcoder_encode": _encode,
    "boxcoder_decode": _decode,
}
