"""Draws one image with its objects: masks, boxes and class names.

Shapes: D objects of one image; H, W its height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.pictures.style import class_color, short

OPACITY = 0.45
MOST_PIXELS = 1000  # of the longer side
MOST_NAMES = 12  # more would bury the image
HEIGHT = 0.055  # of a name, as a part of the image: an estimate


@dataclass(frozen=True)
class Drawn:
    """Objects of an image."""

    boxes: np.ndarray  # [D, 4] in pixels
    labels: Sequence[int]  # D of them
    masks: Sequence[np.ndarray | rle.Rle] | None = None  # D of [H, W], or RLEs
    scores: Sequence[float] | None = None


def draw_objects(axes: Any, image: np.ndarray, objects: Drawn, names: Mapping[int, str]) -> None:
    """Shows ``image``, uint8 ``[H, W, 3]``, with its objects.

    Classes have colours. Names are written if there are few objects. Large images are drawn with
    fewer pixels.
    """
    height, width = image.shape[:2]
    step = -(-max(height, width) // MOST_PIXELS)
    pixels = image[::step, ::step].astype(np.float32) / 255
    for label, given in zip(objects.labels, objects.masks or (), strict=False):
        mask = (rle.decode(given) if isinstance(given, Mapping) else given)[::step, ::step] > 0
        tint = np.array(to_rgb(class_color(label)), np.float32)
        pixels[mask] = (1 - OPACITY) * pixels[mask] + OPACITY * tint
        pixels[outline(mask)] = tint
    frame = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(pixels, interpolation="nearest", aspect="equal", extent=frame)
    taken: list[tuple[float, float, float]] = []  # left, right and bottom of each name
    for index, label in enumerate(objects.labels):
        x1, y1, x2, y2 = objects.boxes[index]
        color = class_color(label)
        axes.add_patch(
            Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, color=color, lw=1.2)
        )
        if len(objects.labels) <= MOST_NAMES:
            text = short(names.get(label, str(label)), 14)
            if objects.scores is not None:
                text += f" {objects.scores[index]:.2f}"
            length = len(text) * HEIGHT / 2 * width
            left, bottom = max(min(x1, width - length), 0), max(y1, HEIGHT * height)
            right = left + length
            while any(left < r and right > a and abs(bottom - b) < HEIGHT * height
                      for a, r, b in taken) and bottom < height:  # fmt: skip
                bottom += HEIGHT * height
            taken.append((left, right, bottom))
            axes.text(
                left, bottom, text, fontsize=7, va="bottom", clip_on=True,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )  # fmt: skip
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_axis_off()


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask, bool ``[H, W]``, that have a neighbour outside of it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
