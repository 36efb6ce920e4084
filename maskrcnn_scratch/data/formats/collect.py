"""Collects images and objects as a COCO data set, whatever format they come from."""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_scratch.data.image import image_size
from maskrcnn_scratch.data.pixel_limit import current_pixel_limit
from maskrcnn_scratch.data.walk import files_below
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.plain_values import shown

__all__ = [
    "Collected", "base_name", "circle", "image_files", "image_named", "image_size", "inflate",
    "rectangle",
]  # fmt: skip

Polygon = Sequence[float]  # x0, y0, x1, y1, ... in pixels
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass
class Collected:
    """COCO annotations while they are collected.

    Attributes:
        source: file or folder that is read; messages name it.
        images: COCO's image entries; ``file_name`` is relative to ``folder``.
        annotations: COCO's annotation entries. Without outline and mask ``segmentation`` is empty.
        categories: names in the order of their ids, which start at 1.
        folder: the folder of the images.
        skipped: number of shapes that have no area, by kind.
    """

    source: Path
    folder: Path
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def add_image(self, file_name: str, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Adds an image; its (height, width) is read from the file where it is not given.

        Raises:
            FileNotFoundError, ValueError: the size has to be read and cannot be.
            ValueError: the size that is given is none, or is over the limit of pixels
                (``pixel_limit``).
        """
        height, width = (
            (_side(side, file_name) for side in size)
            if size
            else image_size(self.folder / file_name)
        )
        limit = current_pixel_limit()
        if limit is not None and height * width > limit:
            raise ValueError(
                f"{file_name}: {height} x {width} (height x width) are more than the limit of "
                f"{limit} pixels"
            )
        entry = {
            "id": len(self.images) + 1,
            "file_name": file_name.replace("\\", "/"),
            "height": height,
            "width": width,
        }
        self.images.append(entry)
        return entry

    def add_object(
        self,
        image: dict[str, Any],
        name: str,
        *,
        box: Sequence[float] | None = None,
        polygons: Iterable[Polygon] = (),
        mask: np.ndarray | None = None,
    ) -> None:
        """Adds an object of category ``name``.

        Args:
            box: (x1, y1, x2, y2) in pixels; by default around the outline or mask.
            polygons: outline; parts with fewer than three points are dropped.
            mask: bool ``[H, W]``, instead of an outline.

        Raises:
            ValueError: the object has neither a box nor an outline nor a mask, or its outline is
                damaged. The image is named.
        """
        size = (image["height"], image["width"])
        outline = [list(map(float, polygon)) for polygon in polygons if len(polygon) >= 6]
        segmentation: Any = outline
        area = 0.0
        if mask is not None:
            segmentation = rle.encode(mask)
        if mask is not None or outline:
            try:
                encoded = segmentation if mask is not None else rle.from_polygons(outline, size)
            except ValueError as error:
                raise ValueError(f"{self.source}: {image['file_name']}: {error}") from None
            area = float(rle.area(encoded))
            x, y, width, height = rle.bounding_box(encoded)
        elif box is None:
            raise ValueError(f"{self.source}: {image['file_name']}: an object without a shape")
        if box is not None:
            x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
            area = area if mask is not None or outline else width * height
        if not (area > 0 and width > 0 and height > 0):
            self.skipped["objects without area"] += 1
            return
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image["id"],
                "category_id": self.category(name),
                "bbox": [float(x), float(y), float(width), float(height)],
                "area": float(area),
                "segmentation": segmentation,
                "iscrowd": 0,
            }
        )

    def skip(self, what: str) -> None:
        """Counts something that COCO annotations cannot hold."""
        self.skipped[what] += 1

    def category(self, name: str) -> int:
        """The id of a category, which is added where it is new."""
        if name not in self.categories:
            self.categories.append(name)
        return self.categories.index(name) + 1

    def content(self) -> dict[str, Any]:
        """The content of a COCO annotation file; one warning tells what was skipped.

        Raises:
            ValueError: there are no images.
        """
        if not self.images:
            raise ValueError(f"{self.source}: no images in it")
        if self.skipped:
            kinds = ", ".join(f"{count} {what}" for what, count in self.skipped.items())
            warnings.warn(f"{self.source}: skipped {kinds}", stacklevel=2)
        categories = [{"id": id, "name": name} for id, name in enumerate(self.categories, 1)]
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }


def _side(value: Any, file_name: str) -> int:
    """A height or width from a file; 640.0 is 640."""
    try:
        side = int(value)
    except (TypeError, ValueError, OverflowError):
        side = 0
    if side != value or side < 1:
        raise ValueError(f"{file_name}: its height or width is no whole number: {shown(value)}")
    return side


def image_files(folder: Path, *, strict: bool = True) -> list[Path]:
    """All image files below a folder, sorted; ``strict`` as for ``files_below``."""
    found = files_below(folder, strict=strict)
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def image_named(stem: str, folder: Path) -> Path | None:
    """The image file ``stem`` with any suffix in a folder."""
    candidates = (folder / (stem + suffix) for suffix in IMAGE_SUFFIXES)
    upper = (folder / (stem + suffix.upper()) for suffix in IMAGE_SUFFIXES)
    return next((path for path in (*candidates, *upper) if path.is_file()), None)


def base_name(file_name: str) -> str:
    """The last part of a path that another system, or a URL, may have written."""
    return file_name.replace("\\", "/").rsplit("/", 1)[-1].partition("?")[0]


def inflate(packed: bytes, size: tuple[int, int]) -> bytes:
    """Data that zlib has compressed, of a mask for an image of ``size`` (height, width).

    Raises:
        ValueError: it is damaged, or longer than eight bytes per pixel.
    """
    try:
        stream = zlib.decompressobj()
        content = stream.decompress(packed, 8 * size[0] * size[1] + 4096)
    except zlib.error as error:
        raise ValueError(f"a mask is damaged: {error}") from None
    if not stream.eof:
        raise ValueError("a mask is incomplete, or larger than its image")
    return content


def circle(x: float, y: float, radius_x: float, radius_y: float | None = None) -> list[float]:
    """A circle or ellipse as a polygon of 32 points."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    radius_y = radius_x if radius_y is None else radius_y
    points = np.stack((x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)), axis=1)
    return [float(value) for value in points.ravel()]


def rectangle(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """A rectangle as a polygon."""
    return [x1, y1, x2, y1, x2, y2, x1, y2]
