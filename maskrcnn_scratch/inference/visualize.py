"""Detections drawn on their image: translucent masks with a contour, boxes, names with scores.

Shapes: see ``structures``. Coordinates are in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import NormalDist, median
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from maskrcnn_scratch.evaluation.model_results import MASK_THRESHOLD
from maskrcnn_scratch.inference.labels import LabelMode, draw_labels
from maskrcnn_scratch.inference.predictor import ImageLike, to_image_tensor
from maskrcnn_scratch.ops import rle

# Distinct on photographs, and light enough for black text.
_COLORS = [
    (255, 184, 0), (0, 200, 255), (255, 92, 92), (96, 224, 96), (226, 120, 255), (255, 128, 32),
    (80, 160, 255), (200, 235, 40), (255, 120, 190), (40, 220, 180), (178, 150, 255), (255, 236, 0),
]  # fmt: skip
_MASK_OPACITY, _RIM_OPACITY = 0.4, 0.6

ColorBy = Literal["instance", "class"]


def draw_detections(
    image: ImageLike,
    result: Mapping[str, Any],
    categories: Mapping[int, str] | Sequence[str] = (),
    *,
    labels: LabelMode = "auto",
    color_by: ColorBy = "instance",
) -> Image.Image:
    """A copy of the image, in its size, with the detections drawn on it.

    Args:
        image: see :func:`to_image_tensor`.
        result: the model's dict for this image: ``boxes [D, 4]``, ``labels [D]``, ``scores [D]``
            and, if the model has a mask branch, ``masks [D, 1, H, W]``, drawn where at least 0.5,
            or a list of RLEs.
        categories: name of each label, such as ``meta["categories"]`` of published weights; a label
            without a name is shown as "label 7".
        labels: "all" draws the name and score of every detection. "auto" makes them smaller where
            there are many, and drops those that would cover other objects or labels. "none" draws
            none.
        color_by: "instance" derives the colour from the label and the rank among the detections of
            that label, "class" from the label.
    """
    pixels = (to_image_tensor(image).float().clamp(0, 1) * 255).round().byte()  # [3, H, W]
    picture = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    boxes = result["boxes"].cpu().float().tolist()
    colors = _colors(result["labels"].tolist(), color_by)
    line = _line_width(picture.size, boxes)
    # Small objects are drawn on top of large ones.
    order = sorted(range(len(boxes)), key=lambda i: -_area(boxes[i]))
    if "masks" in result:
        for i in order:
            _draw_mask(picture, *_crop(result["masks"][i]), colors[i], line)
    draw = ImageDraw.Draw(picture)
    for i in order:
        draw.rectangle(boxes[i], outline=colors[i], width=line)
    if labels != "none":
        names = dict(categories if isinstance(categories, Mapping) else enumerate(categories))
        texts = [
            (names.get(label, f"label {label}"), f"{score:.2f}")
            for label, score in zip(
                result["labels"].tolist(), result["scores"].tolist(), strict=True
            )
        ]
        draw_labels(picture, boxes, texts, colors, labels)
    return picture


def _crop(mask: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """A soft mask [1, H, W] or an RLE as a bool mask of its object alone, and where that begins.

    Returns:
        bool ``[h, w]``, which may be empty, and the (x, y) of its first pixel in the image.
    """
    if isinstance(mask, Mapping):
        x, y, width, height = map(int, rle.bounding_box(mask))
        return rle.decode(mask)[y : y + height, x : x + width] != 0, (x, y)
    binary = (mask[0].cpu() >= MASK_THRESHOLD).numpy()
    rows, columns = (np.flatnonzero(binary.any(axis)) for axis in (1, 0))
    if not rows.size:
        return binary[:0, :0], (0, 0)
    box = binary[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return box, (int(columns[0]), int(rows[0]))


def _line_width(size: tuple[int, int], boxes: Sequence[Sequence[float]]) -> int:
    """In pixels: 1/600 of the longer side, and at most 1/20 of the shorter side of most boxes."""
    width = max(size) / 600
    if boxes:
        width = min(width, median(min(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes) / 20)
    return max(1, round(width))


def _colors(labels: Sequence[int], color_by: ColorBy) -> list[tuple[int, int, int]]:
    seen: dict[int, int] = {}
    colors = []
    for label in labels:
        rank = seen[label] = seen.get(label, -1) + 1 if color_by == "instance" else 0
        colors.append(_COLORS[(5 * label + 7 * rank) % len(_COLORS)])
    return colors


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _draw_mask(
    picture: Image.Image,
    mask: np.ndarray,
    corner: tuple[int, int],
    color: tuple[int, int, int],
    line: int,
) -> None:
    """Tints the area of a bool mask [h, w] at ``corner`` (x, y) and draws its contour."""
    if not mask.size:
        return
    (height, width), (x, y), margin = mask.shape, corner, 3 * line
    # Not beyond the picture: a contour is not drawn where an object leaves it.
    left, top = min(margin, x), min(margin, y)
    right = min(margin, picture.width - x - width)
    bottom = min(margin, picture.height - y - height)
    crop = np.pad(mask, ((top, bottom), (left, right)))
    left, top = x - left, y - top
    blurred = Image.fromarray(crop).convert("L").filter(ImageFilter.GaussianBlur(line))
    greys = blurred.tobytes()
    for paint, opacities in zip((color, (0, 0, 0), color), _opacities(line), strict=True):
        opacity = Image.frombytes("L", blurred.size, greys.translate(opacities))
        picture.paste(paint, (left, top), opacity)


@cache
def _opacities(line: int) -> tuple[bytes, bytes, bytes]:
    """Opacity of the fill, the contour's dark rim and the contour for each grey of a blurred mask.

    Blurred by a Gaussian, a straight edge becomes the normal distribution, whose inverse is the
    distance from the edge in pixels; within half a pixel of where a line ends it fades out.
    """
    blur = NormalDist(sigma=line)
    # The middle of each of the 256 grey steps, so that no distance is infinite.
    inside = [blur.inv_cdf((grey + 0.5) / 256) for grey in range(256)]
    return (
        bytes(_opacity(_MASK_OPACITY, distance + 0.5) for distance in inside),
        bytes(_opacity(_RIM_OPACITY, line / 2 + 1.5 - abs(distance)) for distance in inside),
        bytes(_opacity(1, line / 2 + 0.5 - abs(distance)) for distance in inside),
    )


def _opacity(most: float, covered: float) -> int:
    return round(255 * most * min(max(covered, 0), 1))
