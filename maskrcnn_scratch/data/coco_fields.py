"""The fields of COCO entries, checked. Each function raises a ValueError for another value."""

from __future__ import annotations

import math

from maskrcnn_scratch.plain_values import shown

_LONGEST_PATH = 4096  # characters; Linux's limit in bytes
_LARGEST_AREA = 2.0**63


def parse_id(id: object) -> int:
    """An id as an int; raises a ValueError unless it is a whole number of at most 64 bits."""
    if not isinstance(id, (int, float)) or id != id // 1 or abs(id) >= 2**63:
        raise ValueError(f"id is not a whole number: {shown(repr(id))}")
    return int(id)


def parse_text(text: str) -> str:
    """The text; raises a ValueError for lone surrogates, which JSON allows and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"text with lone surrogates: {shown(text)}") from None
    return text


def has_type(value: object, kind: type) -> bool:
    """Whether the value is a whole number (``kind`` is int) or text that UTF-8 can hold (str)."""
    try:
        if kind is int:
            parse_id(value)
        elif isinstance(value, str):
            parse_text(value)
        else:
            return False
    except ValueError:
        return False
    return True


def parse_file_name(name: object) -> str:
    """An image's ``file_name``; raises a ValueError for what no file can be called."""
    if not isinstance(name, str) or not name:
        raise ValueError("no file_name")
    if "\0" in name or len(name) > _LONGEST_PATH:
        raise ValueError(f"no file can have this file_name: {shown(name)}")
    return parse_text(name)


def parse_area(area: object) -> float:
    """An annotation's area in pixels; raises a ValueError unless it is a number >= 0."""
    if not isinstance(area, (int, float)) or not 0 <= area < _LARGEST_AREA:
        raise ValueError(f"area is not a number of pixels: {shown(repr(area))}")
    return float(area)


def parse_crowd(iscrowd: object) -> bool:
    """Whether an annotation is a crowd; raises a ValueError unless it is 0, 1 or None."""
    if iscrowd not in (0, 1, None):
        raise ValueError(f"iscrowd is neither 0 nor 1: {shown(repr(iscrowd))}")
    return bool(iscrowd)


def parse_bbox(bbox: object) -> tuple[float, float, float, float]:
    """An annotation's (x, y, width, height); raises a ValueError unless it is 4 finite numbers."""
    try:
        x, y, width, height = map(float, bbox)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"bbox is not four numbers: {shown(repr(bbox))}") from None
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"bbox is not finite: {shown(repr(bbox))}")
    return x, y, width, height
