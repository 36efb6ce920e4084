"""detectron2's conventions, against a reimplementation of its network (``detectron2_network``).

detectron2 has no package for current Python and torch. The reimplementation shares no code with
this package; it was written after detectron2's sources, and never compared with detectron2 itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch import maskrcnn_resnet50_fpn
from maskrcnn_scratch.conventions import Conventions, paste_masks_subpixel
from maskrcnn_scratch.parity import detectron2_network
from maskrcnn_scratch.parity.calibrate import calibrate
from maskrcnn_scratch.parity.compare import Check, compare
from maskrcnn_scratch.parity.model import Agreement, Difference, match_image, summarize
from maskrcnn_scratch.parity.names import PARTS
from maskrcnn_scratch.parity.ops import random_boxes
from maskrcnn_scratch.roi_heads import MultiScaleRoIAlign
from maskrcnn_scratch.rpn import AnchorGenerator
from maskrcnn_scratch.structures import ImageList
from maskrcnn_scratch.weights.identify import convert

CLASSES = 80
LIMITS = {"post_nms_topk": 100, "detections_per_image": 15}
# 13 by 21 locations at stride 16. A side that is no multiple of 64 tells the two rules for the
# strides apart.
HEIGHT, WIDTH = 224, 352


def detectron2_checks(
    photograph: Tensor, parts: Sequence[str] = PARTS["detectron2"]
) -> Iterator[Check]:
    """Anchors, RoIAlign, pasting and the complete model, on the CPU.

    Args:
        photograph: ``[3, H, W]`` in 0-1; its top left corner is used.
    """
    for part in parts:
        if part == "anchors":
            yield _anchors()
        elif part == "roi_align":
            yield _roi_align()
        elif part == "paste_masks":
            yield _paste()
        else:
            yield _model(photograph[:, :HEIGHT, :WIDTH])


def _grids() -> list[tuple[int, int]]:
    return [(-(-HEIGHT // s), -(-WIDTH // s)) for s in detectron2_network.STRIDES]


def _anchors() -> Check:
    """Corners are not rounded, strides are the true ones."""
    conventions = Conventions.detectron2()
    generator = AnchorGenerator(
        tuple((8 * stride,) for stride in detectron2_network.STRIDES),
        (0.5, 1.0, 2.0),
        rounded=conventions.round_anchors,
        strides=conventions.anchor_strides,
        ratios_fastest=conventions.ratios_fastest,
    )
    images = ImageList(torch.empty(1, 3, HEIGHT, WIDTH), torch.tensor([[HEIGHT, WIDTH]]))
    ours = generator(images, [torch.empty(1, 1, *grid) for grid in _grids()])[0]
    theirs = [
        detectron2_network.grid_anchors(torch.Size(grid), stride, 8 * stride)
        for grid, stride in zip(_grids(), detectron2_network.STRIDES, strict=True)
    ]
    return compare("detectron2", "anchors", ours, torch.cat(theirs), atol=1e-4)


def _roi_align() -> Check:
    """Aligned, with as many samples as a bin has pixels."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(1, 256, *grid, generator=generator) for grid in _grids()[:4]]
    boxes = random_boxes(60, generator, extent=float(HEIGHT)).clamp(min=0)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=0, aligned=True)
    ours = pool(dict(zip("0123", features, strict=True)), [boxes], [(HEIGHT, WIDTH)])
    theirs = detectron2_network.pool(features, 0, boxes, 7)
    return compare("detectron2", "roi_align", ours, theirs, inputs={"boxes": (boxes, 0)})


def _paste() -> Check:
    """Boxes are not rounded to pixels.

    Rounding moves a coordinate by 200 * 2**-24 pixels, which in a box of one pixel is 3e-4 of a
    mask pixel.
    """
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, 1, 28, 28, generator=generator)
    boxes = random_boxes(20, generator, extent=float(HEIGHT))
    ours = paste_masks_subpixel(masks, boxes, (HEIGHT, WIDTH))
    theirs = detectron2_network.paste(masks[:, 0], boxes, (HEIGHT, WIDTH))
    return compare(
        "detectron2", "paste_masks", ours, theirs, atol=5e-4, inputs={"boxes": (boxes, 0)}
    )


@torch.no_grad()
def _model(image: Tensor) -> Check:
    """Both models with the same weights on one image, which neither resizes."""
    options: dict[str, Any] = {
        "num_classes": CLASSES + 1,
        "min_size": min(image.shape[-2:]),
        "max_size": max(image.shape[-2:]),
        "rpn_post_nms_top_n_test": LIMITS["post_nms_topk"],
        "box_detections_per_img": LIMITS["detections_per_image"],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, conventions=Conventions.detectron2(), **options
        ).eval()
        reference = detectron2_network.GeneralizedRCNN(CLASSES, **LIMITS).eval()
    calibrate(model, image, background_logit=6.0)
    reference.load_state_dict(convert(model.state_dict(), "torchvision", "detectron2"))
    (theirs,) = reference([255 * image.flip(0)])  # BGR
    theirs["labels"] = theirs["labels"] + 1
    agreement = Agreement()
    match_image(0, model([image])[0], theirs, agreement, _unexplained)
    return replace(summarize("detections", [agreement]), level="detectron2")


def _unexplained(n: int, what: str, *_: Tensor) -> Difference:
    return Difference(n, what, torch.inf, "unknown")
