"""Everything that the page shows of one image, as plain values that JSON can hold.

Boxes are in the pixels of the resized image, unless a name says ``page``: the original image, or a
smaller copy of one whose longer side exceeds ``PAGE_SIDE``.

Shapes: see ``structures``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.collect_boxes import (
    collect_box_head,
    collect_detections,
    collect_proposals,
    collect_selection,
)
from maskrcnn_scratch.inspect.collect_features import collect_levels
from maskrcnn_scratch.inspect.collect_objects import collect_anchor_targets, collect_objects
from maskrcnn_scratch.inspect.levels import anchor_levels
from maskrcnn_scratch.inspect.measure import Measured, run_measured
from maskrcnn_scratch.inspect.packed import pack_probabilities
from maskrcnn_scratch.inspect.pictures import batch_pixels, data_uri, to_pixels
from maskrcnn_scratch.inspect.selection import box_selection, rpn_selection
from maskrcnn_scratch.inspect.steps import STEPS, describe
from maskrcnn_scratch.structures import StageOutputs, Target
from maskrcnn_scratch.transform import resize_image, resize_target

PAGE_SIDE = 1600  # pixels of the longer side of the picture in the page


@dataclass(frozen=True, eq=False)
class Inspected:
    """One image through one model, and what the page shows of it."""

    model: GeneralizedRCNN
    image: Tensor
    target: Target | None
    stages: StageOutputs
    page_size: tuple[int, int]
    content: dict[str, Any]


@torch.no_grad()
def inspect_image(
    model: GeneralizedRCNN,
    image: Tensor,
    *,
    name: str,
    class_names: dict[int, str],
    target: Target | None = None,
) -> Inspected:
    """Runs the model on one image and collects what the page shows.

    Args:
        model: in eval mode.
        image: ``[3, H, W]`` in 0-1.
        name: of the image.
        class_names: by label, from 1.
        target: ground truth in the pixels of ``image``; None without annotations.

    Raises:
        StageError: a part of the model raised, naming it.
    """
    parameter = next(model.parameters(), image)
    image = image.to(parameter.device, parameter.dtype)
    original = int(image.shape[1]), int(image.shape[2])
    page_size = size_on_page(original)
    measured = run_measured(model, image, page_size)
    page_image = image.cpu() if page_size == original else resize_image(image.cpu(), page_size)
    if target is not None:
        target = resize_target(target, original, page_size)
    content = _content(model, measured, page_image, original, name, class_names, target)
    return Inspected(model, image, target, measured.stages, page_size, content)


def size_on_page(original: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the picture in the page."""
    scale = min(1.0, PAGE_SIDE / max(original))
    return max(1, round(original[0] * scale)), max(1, round(original[1] * scale))


def _content(
    model: GeneralizedRCNN,
    measured: Measured,
    page_image: Tensor,
    original: tuple[int, int],
    name: str,
    class_names: dict[int, str],
    target: Target | None,
) -> dict[str, Any]:
    stages = measured.stages
    resized = tuple(stages.images.sizes[0].tolist())
    page_size = page_image.shape[1], page_image.shape[2]
    rpn, box = rpn_selection(model, stages, 0), box_selection(model, stages, 0)
    inside = stages.images.tensors[0, :, : resized[0], : resized[1]].nan_to_num(0.0, 0.0, 0.0)
    levels, bases = collect_levels(model, stages)
    num_classes = stages.class_logits.shape[2]
    has_mask = stages.detections.masks is not None
    small = max(page_size) <= 512
    return {
        "name": name,
        "model": type(model).__name__,
        "device": str(stages.anchors.device),
        "torch": str(torch.__version__),
        "classes": ["background", *(class_names.get(i, str(i)) for i in range(1, num_classes))],
        "image": {
            "original": list(original),
            "page": list(page_size),
            "resized": list(resized),
            "padded": list(stages.images.padded_size),
            "source": data_uri(to_pixels(page_image), lossless=small),
            "batch": data_uri(batch_pixels(stages, 0, padded=True), lossless=small),
            "range": [float(inside.min()), float(inside.max())],
            "mean": _numbers(getattr(model.transform, "image_mean", None)),
            "std": _numbers(getattr(model.transform, "image_std", None)),
        },
        "steps": [
            describe(step, model, stages, measured.costs)
            for step in STEPS
            if has_mask or step.id != "mask_head"
        ],
        "levels": levels,
        "regular": anchor_levels(model, stages) is not None,
        "objectness": pack_probabilities(stages.objectness[0].sigmoid(), 255),
        "rpn": collect_selection(rpn),
        "top_k": getattr(model.rpn, "pre_nms_top_n", {}).get("testing"),
        "proposals": collect_proposals(model, stages, rpn, bases),
        "box_head": collect_box_head(model, stages),
        "box": collect_selection(box),
        "score_thresh": getattr(model.roi_heads, "score_thresh", None),
        "detections": collect_detections(model, stages, bases),
        "objects": collect_objects(model, stages, target, class_names, rpn, box),
        "anchor_targets": collect_anchor_targets(model, stages, target),
        "training": None,
        "compare": None,
        "weights": None,
        "total": math.fsum(cost.seconds for cost in measured.costs.values()),
    }


def _numbers(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
