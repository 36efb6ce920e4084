"""Supervisely: ``meta.json``, and for each data set a folder ``img`` and a folder ``ann``."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.data.formats.collect import Collected, inflate
from maskrcnn_scratch.data.walk import files_below
from maskrcnn_scratch.ops import rle


def annotation_files(folder: Path) -> list[Path]:
    """The annotation files of a project, or of one of its data sets.

    Raises:
        OSError: a folder cannot be read.
    """
    found = sorted(path for path in files_below(folder) if path.match("ann/*.json"))
    return [path for path in found if (path.parent.parent / "img").is_dir()]


def read(folder: Path, files: list[Path]) -> Collected:
    """Reads rectangles, polygons with holes, and bitmaps.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read, naming it.
    """
    data = Collected(folder, folder)
    for meta in (folder / "meta.json", folder.parent / "meta.json"):
        if meta.is_file():
            for entry in read_json(meta).get("classes", []):
                data.category(str(entry["title"]))
            break
    for file in files:
        content = read_json(file)
        path = file.parent.parent / "img" / file.stem
        if not path.is_file():
            raise FileNotFoundError(f"{file}: its image {path} is missing")
        try:
            size = int(content["size"]["height"]), int(content["size"]["width"])
            image = data.add_image(path.relative_to(folder).as_posix(), size)
            for figure in content["objects"]:
                _add(data, image, figure)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{file}: not an annotation of Supervisely ({error!r})") from None
    return data


def _add(data: Collected, image: dict[str, Any], figure: dict[str, Any]) -> None:
    kind, name = figure.get("geometryType"), str(figure["classTitle"])
    size = (image["height"], image["width"])
    if kind == "rectangle":
        (x1, y1), (x2, y2) = figure["points"]["exterior"]
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        data.add_object(image, name, box=(x1, y1, x2 + 1, y2 + 1))  # its last pixel is inside
    elif kind == "polygon":
        outer, *holes = (
            [float(value) for point in ring for value in point]
            for ring in (figure["points"]["exterior"], *figure["points"].get("interior", []))
        )
        if holes:
            mask = rle.decode(rle.from_polygons([outer], size)).astype(bool)
            mask &= ~rle.decode(rle.from_polygons(holes, size)).astype(bool)
            data.add_object(image, name, mask=mask)
        else:
            data.add_object(image, name, polygons=[outer])
    elif kind == "bitmap":
        data.add_object(image, name, mask=_mask(figure["bitmap"], size))
    else:
        data.skip(f"figures of type {kind}")


def _mask(bitmap: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Mask ``[H, W]`` of a PNG of a part of the image, compressed and in base64."""
    png = inflate(base64.b64decode(bitmap["data"]), size)
    with Image.open(io.BytesIO(png), formats=["PNG"]) as part:
        if part.width > size[1] or part.height > size[0]:
            raise ValueError("a bitmap is larger than its image")
        pixels = np.asarray(part.getchannel("A") if "A" in part.getbands() else part)
    left, top = map(int, bitmap["origin"])
    height, width = pixels.shape[:2]
    if min(left, top) < 0 or left + width > size[1] or top + height > size[0]:
        raise ValueError("a bitmap reaches outside of its image")
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = (
        pixels != 0 if pixels.ndim == 2 else (pixels != 0).any(2)
    )
    return mask
