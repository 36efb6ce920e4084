"""The hand-written ops, at the sizes that the model calls them with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_scratch import ops
from maskrcnn_scratch.targets.matcher import Matcher
from tools.benchmarks.clock import IMAGE_SIZE, Clock, Timing


@torch.no_grad()
def time_ops(clock: Clock) -> Iterator[Timing]:
    generator = torch.Generator().manual_seed(0)
    device = clock.device
    height, width = IMAGE_SIZE

    corner = torch.rand(1000, 2, generator=generator) * torch.tensor([width, height]) * 0.8
    side = 20 * 15 ** torch.rand(1000, 2, generator=generator)
    boxes = torch.cat((corner, corner + side), dim=1).to(device)
    rois = torch.cat((torch.zeros_like(boxes[:, :1]), boxes), dim=1)
    for layout in (torch.channels_last, torch.contiguous_format):
        yield from time_roi_align(clock, rois, layout)

    for count in (1000, 4000, 8000):
        corner = torch.rand(count, 2, generator=generator) * 700
        side = 20 + 100 * torch.rand(count, 2, generator=generator)
        many = torch.cat((corner, corner + side), dim=1).to(device)
        scores = torch.rand(count, generator=generator).to(device)
        yield clock.pair(
            "ops", f"NMS, {count} boxes",
            partial(ops.nms, many, scores, 0.7),
            partial(torchvision.ops.nms, many, scores, 0.7),
        )  # fmt: skip

    masks = torch.rand(100, 1, 28, 28, generator=generator).to(device)
    yield clock.pair(
        "ops", "paste 100 masks into 800 x 1333",
        lambda: ops.paste_masks(masks, boxes[:100], (800, 1333)),
        lambda: paste_masks_in_image(masks, boxes[:100], (800, 1333)),
    )  # fmt: skip

    many = torch.cat([boxes + shift for shift in range(100)])  # [100000, 4]
    reference = torchvision.models.detection._utils.Matcher(0.7, 0.3, True)

    def match(objects: Tensor, anchors: Tensor) -> object:
        return Matcher(0.7, 0.3, True)(objects, anchors)

    def reference_match(objects: Tensor, anchors: Tensor) -> object:
        return reference(torchvision.ops.box_iou(objects, anchors))

    for number, anchors in ((50, many), (500, many), (500, many[:2000])):
        objects = boxes[:number]
        yield clock.pair(
            "ops", f"match {len(anchors)} anchors with {number} objects",
            partial(match, objects, anchors), partial(reference_match, objects, anchors),
        )  # fmt: skip


def time_roi_align(clock: Clock, rois: Tensor, layout: torch.memory_format) -> Iterator[Timing]:
    """Forward and backward on the finest level of a pyramid, ours from this layout."""
    height, width = IMAGE_SIZE
    plain = torch.randn(1, 256, height // 4, width // 4, device=clock.device)
    features = plain.contiguous(memory_format=layout)
    gradient = torch.randn(len(rois), 256, 7, 7, device=clock.device)
    name = f"1000 x 256 x 7 x 7, {'NHWC' if layout == torch.channels_last else 'NCHW'}"
    args = (rois, 7, 0.25, 2)
    yield clock.pair(
        "ops", f"RoIAlign forward, {name}",
        lambda: ops.roi_align(features, *args),
        lambda: torchvision.ops.roi_align(plain, *args),
    )  # fmt: skip
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (features, plain)]
        ours = ops.roi_align(leaves[0], *args)
        theirs = torchvision.ops.roi_align(leaves[1], *args)
    yield clock.pair(
        "ops", f"RoIAlign backward, {name}",
        lambda: torch.autograd.grad(ours, leaves[0], gradient, retain_graph=True),
        lambda: torch.autograd.grad(theirs, leaves[1], gradient, retain_graph=True),
    )  # fmt: skip
