"""Where RoIAlign samples the feature maps (Mask R-CNN, section 3, RoIAlign)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from maskrcnn_scratch.roi_heads import MultiScaleRoIAlign


class RoIGrid(NamedTuple):
    """Bins and samples of one RoI in image pixels, along x and along y.

    A position is that of the feature pixel's centre on the image. ``aligned=False`` therefore shows
    its shift of half a feature pixel.
    """

    x_edges: list[float]  # P + 1
    y_edges: list[float]  # P + 1
    x_samples: list[float]  # P * samples of a bin
    y_samples: list[float]


def roi_align_grid(pool: object, box: Sequence[float], scale: float) -> RoIGrid | None:
    """Bins and sampling points of RoIAlign for a box.

    Args:
        pool: the RoI pooler.
        box: (x1, y1, x2, y2) in the pixels of the resized image.
        scale: feature pixels per image pixel of the level that the box is pooled from.

    Returns:
        None if ``pool`` is no ``MultiScaleRoIAlign``: how it samples is not known.
    """
    if getattr(type(pool), "forward", None) is not MultiScaleRoIAlign.forward:
        return None
    assert isinstance(pool, MultiScaleRoIAlign)
    height, width = pool.output_size
    x = _axis(box[0], box[2], scale, width, pool.sampling_ratio, pool.aligned)
    y = _axis(box[1], box[3], scale, height, pool.sampling_ratio, pool.aligned)
    return RoIGrid(x[0], y[0], x[1], y[1])


def _axis(
    low: float, high: float, scale: float, bins: int, sampling_ratio: int, aligned: bool
) -> tuple[list[float], list[float]]:
    """Edges of the bins and positions of the samples along one side, in image pixels."""
    start = low * scale - (0.5 if aligned else 0.0)
    length = (high - low) * scale
    if not aligned:
        length = max(length, 1.0)
    step = length / bins
    per_bin = sampling_ratio if sampling_ratio > 0 else max(math.ceil(step), 1)
    # Index 0 of a map is the centre of its first pixel, at half a feature pixel.
    edges = [(start + i * step + 0.5) / scale for i in range(bins + 1)]
    samples = [
        (start + i * step + (k + 0.5) * step / per_bin + 0.5) / scale
        for i in range(bins)
        for k in range(per_bin)
    ]
    return edges, samples
