"""Detections drawn on their image: translucent masks with a contour, boxes, names with scores.

Shapes: see ``structures``. Coordinates are in pixels of the enlarged picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from maskrcnn_scratch.inference.predictor import ImageLike, to_image_tensor

# Distinct on photographs, and light enough for black text.
_COLORS = [
    (255, 184, 0), (0, 200, 255), (255, 92, 92), (96, 224, 96), (226, 120, 255), (255, 128, 32),
    (80, 160, 255), (200, 235, 40), (255, 120, 190), (40, 220, 180), (178, 150, 255), (255, 236, 0),
]  # fmt: skip
_SHORTEST_LONG_SIDE = 800  # smaller pictures are enlarged, so that names fit
_MASK_OPACITY, _RIM_OPACITY = 0.4, 0.6

_Rect = tuple[float, float, float, float]


def draw_detections(
    image: ImageLike,
    result: Mapping[str, Tensor],
    categories: Mapping[int, str] | Sequence[str] = (),
) -> Image.Image:
    """A copy of the image with the detections drawn on it.

    An instance's colour follows from its label and its rank among the detections of that label. A
    picture whose longer side is below 800 pixels is enlarged by a whole factor. Where names would
    overlap, only the one with the higher score is drawn.

    Args:
        image: see :func:`to_image_tensor`.
        result: the model's dict for this image: ``boxes [D, 4]``, ``labels [D]``, ``scores [D]``
            and, if the model has a mask branch, ``masks [D, 1, H, W]``, drawn where above 0.5.
        categories: name of each label, such as ``meta["categories"]`` of published weights; a label
            without a name is shown as "label 7".
    """
    pixels = (to_image_tensor(image).float().clamp(0, 1) * 255).round().byte()  # [3, H, W]
    picture = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    scale = max(1, -(-_SHORTEST_LONG_SIDE // max(picture.size)))
    picture = picture.resize([side * scale for side in picture.size], Image.Resampling.BICUBIC)

    labels, scores = result["labels"].tolist(), result["scores"].tolist()
    boxes = (result["boxes"].cpu().float() * scale).tolist()
    colors = _instance_colors(labels)
    line = max(2, round(max(picture.size) / 600))
    # Small objects are drawn on top of large ones.
    order = sorted(range(len(boxes)), key=lambda i: -_area(boxes[i]))

    if "masks" in result:
        for i in order:
            mask = result["masks"][i, 0].cpu() > 0.5  # [H, W]
            _draw_mask(picture, mask.numpy(), scale, colors[i], line)
    draw = ImageDraw.Draw(picture)
    for i in order:
        draw.rectangle(boxes[i], outline=colors[i], width=line)

    font = ImageFont.load_default(max(14, round(max(picture.size) / 65)))
    names = dict(categories if isinstance(categories, Mapping) else enumerate(categories))
    taken: list[_Rect] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        name = names.get(labels[i], f"label {labels[i]}")
        _draw_tag(picture, f"{name} {scores[i]:.2f}", boxes[i], colors[i], font, taken)
    return picture


def _instance_colors(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    seen: dict[int, int] = {}
    colors = []
    for label in labels:
        rank = seen[label] = seen.get(label, -1) + 1
        colors.append(_COLORS[(5 * label + 7 * rank) % len(_COLORS)])
    return colors


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _draw_mask(
    picture: Image.Image, mask: np.ndarray, scale: int, color: tuple[int, int, int], line: int
) -> None:
    """Tints the area of a bool mask [H, W] and draws its contour, enlarged by ``scale``."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if rows.size == 0:
        return
    margin = -(-3 * line // scale)
    top, left = max(rows[0] - margin, 0), max(columns[0] - margin, 0)
    crop = Image.fromarray(mask[top : rows[-1] + 1 + margin, left : columns[-1] + 1 + margin])
    crop = crop.convert("L").resize([side * scale for side in crop.size], Image.Resampling.BILINEAR)
    corner = (left * scale, top * scale)

    blurred = crop.filter(ImageFilter.GaussianBlur(line))
    fill, shadow, contour = _opacities(line)
    picture.paste(color, corner, blurred.point(fill))
    picture.paste((0, 0, 0), corner, blurred.point(shadow))
    picture.paste(color, corner, blurred.point(contour))


@cache
def _opacities(line: int) -> tuple[list[int], list[int], list[int]]:
    """Opacity of the fill, the contour's dark rim and the contour for each grey of a blurred mask.

    Blurred by a Gaussian, a straight edge becomes the normal distribution, whose inverse is the
    distance from the edge in pixels; within half a pixel of where a line ends it fades out.
    """
    blur = NormalDist(sigma=line)
    # The middle of each of the 256 grey steps, so that no distance is infinite.
    inside = [blur.inv_cdf((grey + 0.5) / 256) for grey in range(256)]
    return (
        [_opacity(_MASK_OPACITY, distance + 0.5) for distance in inside],
        [_opacity(_RIM_OPACITY, line / 2 + 1.5 - abs(distance)) for distance in inside],
        [_opacity(1, line / 2 + 0.5 - abs(distance)) for distance in inside],
    )


def _opacity(most: float, covered: float) -> int:
    return round(255 * most * min(max(covered, 0), 1))


def _draw_tag(
    picture: Image.Image,
    text: str,
    box: Sequence[float],
    color: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[_Rect],
) -> None:
    """Writes ``text`` at the first free position next to the box and adds that to ``taken``."""
    draw = ImageDraw.Draw(picture)
    left, _, right, _ = draw.textbbox((0, 0), text, font=font)
    # The same height for every text, with and without descenders.
    _, top, _, bottom = draw.textbbox((0, 0), "bdpq", font=font)
    pad = (bottom - top) // 5
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x1, y1, x2, y2 = box
    for x, y in (
        (x1, y1 - height),  # on top of the box
        (x1, y1),  # inside its top
        (x2 - width, y1 - height),
        (x1, y2),  # under it
        (x1, y2 - height),
        (x2 - width, y2),
    ):
        # Clamped into the picture.
        x = max(0, min(x, picture.width - width))
        y = max(0, min(y, picture.height - height))
        rect = (x, y, x + width, y + height)
        if not any(_overlap(rect, other) for other in taken):
            draw.rectangle(rect, fill=color)
            draw.text((x + pad - left, y + pad - top), text, fill=(0, 0, 0), font=font)
            taken.append(rect)
            return


def _overlap(a: _Rect, b: _Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
