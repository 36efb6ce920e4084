"""Names and scores beside the boxes of a picture.

A label is a rectangle in the colour of its detection. Coordinates are in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from maskrcnn_scratch.pictures.fonts import Font, font_for

LabelMode = Literal["auto", "all", "none"]
Color = tuple[int, int, int]

_SMALLEST, _LARGEST = 10, 48  # font sizes, in pixels
_MOST_COVERED = 0.06  # share of the picture that all labels cover before they get smaller
_CROWDED = 0.15  # share from which only objects larger than their label have one
_MOST_OF_OTHERS = 0.15  # share of another object's box that a label may cover
_MOST_OF_OWN = 0.3  # share of its own object's box


class _Tag(NamedTuple):
    """Text with its size on the picture, the padding included."""

    text: str
    font: Font
    width: float
    height: float
    offset: tuple[float, float]  # of the text in the rectangle


def draw_labels(
    picture: Image.Image,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[tuple[str, str]],
    colors: Sequence[Color],
    mode: LabelMode,
) -> None:
    """Draws the labels of detections, those of the first ones first.

    Args:
        picture: is drawn on.
        boxes: (x1, y1, x2, y2) of each detection, best detection first.
        texts: name and score of each detection.
        colors: of each detection.
        mode: see ``draw_detections``.
    """
    draw = ImageDraw.Draw(picture)
    size, share = _font_size(draw, picture.size, texts)
    taken = np.zeros((0, 4))
    objects = np.array(boxes, float).reshape(-1, 4)
    areas = (objects[:, 2:] - objects[:, :2]).prod(axis=1)
    for i, (name, score) in enumerate(texts):
        # The name alone is tried where there is no room for the score.
        for text in (f"{name} {score}", name):
            tag = _measure(draw, text, font_for(name, size))
            if mode == "auto" and share > _CROWDED and tag.width * tag.height > areas[i]:
                continue
            rect = _free_rect(tag, i, objects, areas, taken, picture.size, mode)
            if rect is not None:
                x, y = rect[:2]
                draw.rectangle((*rect,), fill=colors[i])
                corner = (x + tag.offset[0], y + tag.offset[1])
                draw.text(corner, text, fill=(0, 0, 0), font=tag.font)
                taken = np.vstack([taken, rect])
                break


def _font_size(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], texts: Sequence[tuple[str, str]]
) -> tuple[int, float]:
    """The font size, and the share of the picture that all labels would cover at that size.

    1/55 of the longer side, less where the labels would cover much of the picture.
    """
    wanted = round(min(max(max(size) / 55, _SMALLEST), _LARGEST))
    tags = [_measure(draw, " ".join(text), font_for(text[0], wanted)) for text in texts]
    share = sum(tag.width * tag.height for tag in tags) / (size[0] * size[1])
    if share <= _MOST_COVERED:
        return wanted, share
    smaller = max(round(wanted * max((_MOST_COVERED / share) ** 0.5, 0.6)), _SMALLEST)
    return smaller, share * (smaller / wanted) ** 2


def _measure(draw: ImageDraw.ImageDraw, text: str, font: Font) -> _Tag:
    left, _, right, _ = draw.textbbox((0, 0), text, font=font)
    # The same height for every text of a font, with and without descenders and accents.
    top, bottom = _extent("bdpq" if text.isascii() else "bdpqÉ", font)
    pad = max((bottom - top) // 5, 1)
    return _Tag(text, font, right - left + 2 * pad, bottom - top + 2 * pad, (pad - left, pad - top))


@lru_cache(maxsize=64)
def _extent(text: str, font: Font) -> tuple[float, float]:
    """The top and bottom of a text."""
    _, top, _, bottom = font.getbbox(text)
    return top, bottom


def _free_rect(
    tag: _Tag,
    index: int,
    objects: np.ndarray,
    areas: np.ndarray,
    taken: np.ndarray,
    size: tuple[int, int],
    mode: LabelMode,
) -> np.ndarray | None:
    """The first good position of a label; with mode "all", else the least bad one."""
    rects = _places(tag, objects[index], size)
    on_labels = _overlaps(rects, taken).sum(axis=1)
    good = on_labels == 0
    if mode == "auto":
        limits = np.full(len(objects), _MOST_OF_OTHERS)
        limits[index] = _MOST_OF_OWN
        good &= (_overlaps(rects, objects) <= limits * np.maximum(areas, 1)).all(axis=1)
    if good.any():
        return rects[good.argmax()]
    return rects[on_labels.argmin()] if mode == "all" else None


def _places(tag: _Tag, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rectangles [6, 4] of the label's size next to and inside the box, within the picture."""
    x1, y1, x2, y2 = box
    corners = np.array(
        [
            (x1, y1 - tag.height),  # on top of the box
            (x1, y1),  # inside its top
            (x2 - tag.width, y1 - tag.height),
            (x1, y2),  # under it
            (x1, y2 - tag.height),
            (x2 - tag.width, y2),
        ]
    )
    sides = np.array((tag.width, tag.height))
    corners = np.maximum(0, np.minimum(corners, np.array(size) - 1 - sides))
    return np.hstack([corners, corners + sides])


def _overlaps(rects: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area [6, D] that each rectangle [6, 4] shares with each of the others [D, 4]."""
    rects = rects[:, None]
    sides = np.minimum(rects[..., 2:], others[:, 2:]) - np.maximum(rects[..., :2], others[:, :2])
    return sides.clip(min=0).prod(axis=2)
