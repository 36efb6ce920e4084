"""Checks of single ops on random boxes, some tiny, some reaching beyond the image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder as ReferenceBoxCoder
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops.boxes import BoxCoder, box_iou, clip_boxes_to_image
from maskrcnn_scratch.parity.bilinear import paste_check
from maskrcnn_scratch.parity.compare import Check, compare


def op_checks(device: torch.device) -> Iterator[Check]:
    """RoIAlign, NMS, pasting and box geometry against ``torchvision.ops``."""
    generator = torch.Generator().manual_seed(0)
    yield from _roi_align(generator, device)
    yield from _nms(generator, device)
    yield _paste(generator, device)
    boxes, others = (random_boxes(200, generator).to(device) for _ in range(2))
    yield compare("op", "box_iou", box_iou(boxes, others), torchvision.ops.box_iou(boxes, others))
    clipped = torchvision.ops.clip_boxes_to_image(boxes, (300, 400))
    yield compare("op", "clip_boxes_to_image", clip_boxes_to_image(boxes, (300, 400)), clipped)
    weights = (10.0, 10.0, 5.0, 5.0)
    coder, reference = BoxCoder(weights), ReferenceBoxCoder(weights)
    deltas = reference.encode_single(boxes, others)
    yield compare("op", "BoxCoder.encode", coder.encode(boxes, others), deltas)
    decoded = reference.decode_single(deltas * 3, others)
    yield compare("op", "BoxCoder.decode", coder.decode(deltas * 3, others), decoded[:, :4])


def random_boxes(count: int, generator: torch.Generator, extent: float = 500.0) -> Tensor:
    """``[count, 4]``: sides from less than a pixel to ``extent``, some reaching beyond it."""
    center = torch.rand(count, 2, generator=generator) * extent
    side = extent ** torch.rand(count, 2, generator=generator)
    return torch.cat((center - side / 2, center + side / 2), dim=1)


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
        name = f"roi_align {'NHWC' if layout == torch.channels_last else 'NCHW'} ratio {ratio}"
        name += " aligned" if aligned else ""
        yield compare("op", name, ours, theirs, atol=atol)


def _nms(generator: torch.Generator, device: torch.device) -> Iterator[Check]:
    for count in (50, 900, 3000):  # torchvision's batched_nms uses another method above 1,000 boxes
        boxes = random_boxes(count, generator, extent=150.0).clamp(min=0).to(device)
        scores = torch.rand(count, generator=generator).mul(200).round().div(200)  # duplicates
        scores, groups = (
            scores.to(device),
            torch.randint(0, 5, (count,), generator=generator).to(device),
        )
        theirs = torchvision.ops.nms(boxes, scores, 0.5)
        yield compare("op", f"nms {count} boxes", ops.nms(boxes, scores, 0.5), theirs)
        for threshold in (0.3, 0.7):
            ours = ops.batched_nms(boxes, scores, groups, threshold)
            theirs = torchvision.ops.batched_nms(boxes, scores, groups, threshold)
            yield compare("op", f"batched_nms {count} boxes at {threshold}", ours, theirs)


def _paste(generator: torch.Generator, device: torch.device) -> Check:
    masks = torch.rand(60, 1, 28, 28, generator=generator).to(device)
    boxes = random_boxes(60, generator).to(device)
    # torchvision fails on boxes that are entirely outside the image.
    boxes = clip_boxes_to_image(boxes, (330, 447)) + torch.tensor([-2.5, -2.5, 2.5, 2.5]).to(boxes)
    theirs = paste_masks_in_image(masks, boxes, (333, 450))
    ours = ops.paste_masks(masks, boxes, (333, 450))
    return paste_check("op", "paste_masks", ours, theirs, masks, boxes, (333, 450))
