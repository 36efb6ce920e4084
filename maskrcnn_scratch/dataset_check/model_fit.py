"""How a data set fits a model: anchors, RoI levels and memory, for resized images.

Shapes: G objects of all images of the data set together; L pyramid levels; a anchors per location.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from maskrcnn_scratch.builders.from_config import PYRAMID_LEVELS, split_over_levels
from maskrcnn_scratch.ops.boxes import box_area
from maskrcnn_scratch.plain_values import check_positive
from maskrcnn_scratch.roi_heads import MultiScaleRoIAlign
from maskrcnn_scratch.rpn.anchors import anchors_of_location
from maskrcnn_scratch.transform import GeneralizedRCNNTransform

STRIDES = [4 * 2**level for level in range(PYRAMID_LEVELS)]
POOLED_LEVELS = 4  # the last level only feeds the RPN
IOU_EDGES = (0.0, 0.3, 0.5, 0.7, 1.0)  # of the histogram; 0.3 and 0.7 are the RPN's thresholds


@dataclass(frozen=True)
class Geometry:
    """Sizes in a model that a data set should fit. The defaults are torchvision's."""

    min_size: int = 800
    """Length in pixels that the shorter side of an image is resized to."""
    max_size: int = 1333
    """Upper limit of the longer side in pixels."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Sides of square anchors in pixels, split evenly over five pyramid levels, finest first."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors."""
    canonical_scale: int = 224
    """Side in pixels of a box that is pooled from --canonical-level."""
    canonical_level: int = 4
    """Pyramid level for --canonical-scale; level 4 has stride 16."""

    def __post_init__(self) -> None:
        split_over_levels(self.anchor_sizes)  # raises a ValueError
        check_positive(self, "min_size", "max_size", "aspect_ratios")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image after the model's resize, before padding."""
        transform = GeneralizedRCNNTransform(self.min_size, self.max_size, [0.0], [1.0]).eval()
        return transform.resized_size(height, width)


@dataclass(frozen=True)
class ModelFit:
    """How the objects of a data set fit a model."""

    anchor_iou_histogram: dict[str, int]
    """Number of objects by the IoU of their best anchor."""
    unmatched: list[int]
    """Indices of the objects whose best anchor has an IoU below 0.3. They are matched only by the
    rule for low-quality matches."""
    roi_levels: dict[str, int]
    """Number of objects by the pyramid level their features are pooled from (FPN, Eq. 1)."""
    mean_anchor_iou: float
    suggested: Geometry
    """The geometry with the best anchors that were tried; image sizes are unchanged."""
    suggested_mean_anchor_iou: float


def fit_model(boxes: Tensor, sizes: Tensor, geometry: Geometry) -> ModelFit:
    """Fit of ``boxes`` [G, 4], (x1, y1, x2, y2) in pixels of the resized images.

    ``sizes`` [G, 2] is the (height, width) of the resized image of each box.
    """
    iou = best_anchor_iou(boxes, sizes, geometry)
    counts = torch.histogram(iou, torch.tensor(IOU_EDGES)).hist.int().tolist()
    ranges = [f"{low}-{high}" for low, high in pairwise(IOU_EDGES)]
    pool = MultiScaleRoIAlign(
        [],
        7,
        2,
        canonical_scale=geometry.canonical_scale,
        canonical_level=geometry.canonical_level,
    )
    scales = [1 / stride for stride in STRIDES[:POOLED_LEVELS]]
    levels = torch.bincount(pool.map_levels(boxes, scales), minlength=len(scales)).tolist()
    suggested = suggest_anchors(boxes, sizes, geometry)
    return ModelFit(
        anchor_iou_histogram=dict(zip(ranges, counts, strict=True)),
        unmatched=torch.nonzero(iou < IOU_EDGES[1]).flatten().tolist(),
        roi_levels={f"P{level}": count for level, count in enumerate(levels, 2)},
        mean_anchor_iou=float(iou.mean()),
        suggested=suggested,
        suggested_mean_anchor_iou=float(best_anchor_iou(boxes, sizes, suggested).mean()),
    )


def best_anchor_iou(boxes: Tensor, sizes: Tensor, geometry: Geometry) -> Tensor:
    """IoU [G] of each box [G, 4] with its best anchor, in images of ``sizes`` [G, 2].

    Anchors of one shape differ only in position, and the one with the nearest centre has the
    highest IoU. So only L x a anchors are compared with each box.
    """
    best = boxes.new_zeros(len(boxes))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # [G, 2] x, y
    padded = (sizes + 31) // 32 * 32  # [G, 2] height, width
    area = box_area(boxes)
    for level_sizes, stride in zip(split_over_levels(geometry.anchor_sizes), STRIDES, strict=True):
        last = torch.ceil(padded.flip(1) / stride) - 1  # [G, 2] last column and row of the grid
        nearest = torch.minimum((centres / stride).round().clamp(min=0), last) * stride  # [G, 2]
        for anchor in anchors_of_location(level_sizes, geometry.aspect_ratios):
            placed = nearest.repeat(1, 2) + anchor  # [G, 4]
            low = torch.maximum(placed[:, :2], boxes[:, :2])
            high = torch.minimum(placed[:, 2:], boxes[:, 2:])
            inner = (high - low).clamp(min=0).prod(1)  # [G]
            best = torch.maximum(best, inner / (area + box_area(anchor[None]) - inner))
    return best


def num_anchors(size: tuple[int, int], geometry: Geometry) -> int:
    """Number of anchors of a resized image of this (height, width), after padding."""
    height, width = (-(-side // 32) * 32 for side in size)
    locations = sum(-(-height // stride) * -(-width // stride) for stride in STRIDES)
    return locations * len(geometry.aspect_ratios) * len(geometry.anchor_sizes) // PYRAMID_LEVELS


def suggest_anchors(boxes: Tensor, sizes: Tensor, geometry: Geometry) -> Geometry:
    """``geometry`` with the anchors that have the highest mean IoU, out of some candidates."""
    count = len(geometry.anchor_sizes)
    side = box_area(boxes).sqrt()
    ratio = (boxes[:, 3] - boxes[:, 1]) / (boxes[:, 2] - boxes[:, 0])
    low, high = torch.quantile(side, torch.tensor([0.05, 0.95])).tolist()
    all_sizes = [
        geometry.anchor_sizes,
        *(_rounded([size * factor for size in geometry.anchor_sizes]) for factor in (0.25, 0.5, 2)),
        _rounded(torch.quantile(side, (torch.arange(count) + 0.5) / count).tolist()),
        _rounded([low * (high / low) ** (step / (count - 1)) for step in range(count)]),
    ]
    spread = torch.quantile(ratio, torch.tensor([0.15, 0.5, 0.85])).tolist()
    all_ratios = [geometry.aspect_ratios, tuple(round(value, 2) for value in spread)]
    candidates = [
        replace(geometry, anchor_sizes=anchor_sizes, aspect_ratios=aspect_ratios)
        for anchor_sizes in all_sizes
        for aspect_ratios in all_ratios
        if min(aspect_ratios) > 0
    ]
    return max(candidates, key=lambda each: float(best_anchor_iou(boxes, sizes, each).mean()))


def _rounded(sizes: Sequence[float]) -> tuple[int, ...]:
    return tuple(max(round(size), 4) for size in sizes)
