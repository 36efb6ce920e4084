"""The fields of COCO entries as numbers. Each function raises a ValueError for another value."""

from __future__ import annotations

import math


def parse_id(id: object) -> int:
    """An id as an int; raises a ValueError unless it is a whole number of at most 64 bits."""
    if not isinstance(id, (int, float)) or id != id // 1 or abs(id) >= 2**63:
        raise ValueError(f"id is not a whole number: {id!r}")
    return int(id)


def parse_area(area: object) -> float:
    """An annotation's area in pixels; raises a ValueError unless it is a number >= 0."""
    if not isinstance(area, (int, float)) or not 0 <= area < math.inf:
        raise ValueError(f"area is not a number of pixels: {area!r}")
    return area


def parse_crowd(iscrowd: object) -> bool:
    """Whether an annotation is a crowd; raises a ValueError unless it is 0, 1 or None."""
    if iscrowd not in (0, 1, None):
        raise ValueError(f"iscrowd is neither 0 nor 1: {iscrowd!r}")
    return bool(iscrowd)


def parse_bbox(bbox: object) -> tuple[float, float, float, float]:
    """An annotation's (x, y, width, height); raises a ValueError unless it is 4 finite numbers."""
    try:
        x, y, width, height = map(float, bbox)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise ValueError(f"bbox is not four numbers: {bbox!r}") from None
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"bbox is not finite: {bbox!r}")
    return x, y, width, height
