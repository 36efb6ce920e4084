"""labelme: a JSON file beside each image."""

from __future__ import annotations

import base64
import binascii
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.data.formats.collect import Collected, base_name, circle, rectangle


def is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys()


def read(folder: Path, files: list[Path]) -> Collected:
    """Reads labelme files; shapes of one label and ``group_id`` are one object.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read, naming it.
    """
    data = Collected(folder, folder)
    for path in files:
        content = read_json(path)
        image_path = path.parent / base_name(str(content["imagePath"]))
        size = (content.get("imageHeight"), content.get("imageWidth"))
        name = image_path.relative_to(folder).as_posix()
        image = data.add_image(name, size if all(size) else None)
        groups: dict[tuple[str, object], list[list[float]]] = {}
        for number, shape in enumerate(content["shapes"]):
            label = str(shape.get("label"))
            if shape.get("shape_type") == "mask":
                mask = _mask(shape, image, path)
                data.add_object(image, label, mask=mask)
                continue
            polygon = _polygon(shape)
            if polygon is None:
                data.skip(f"shapes of type {shape.get('shape_type')}")
                continue
            group = shape.get("group_id")
            key = (label, ("alone", number) if group is None else group)
            groups.setdefault(key, []).append(polygon)
        for (label, _), polygons in groups.items():
            data.add_object(image, label, polygons=polygons)
    return data


def _polygon(shape: dict[str, Any]) -> list[float] | None:
    points = shape.get("points") or []
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon":
        return [float(value) for point in points for value in point]
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        return rectangle(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    if kind == "circle" and len(points) == 2:
        (x, y), (edge_x, edge_y) = points
        return circle(x, y, math.hypot(edge_x - x, edge_y - y))
    return None


def _mask(shape: dict[str, Any], image: dict[str, Any], path: Path) -> np.ndarray:
    """The mask of the box between the two points, as an image of the whole size."""
    try:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
    except (KeyError, TypeError, OSError, binascii.Error) as error:
        raise ValueError(f"{path}: a mask that is not a PNG in base64 ({error})") from error
    (x1, y1), _ = shape["points"]
    left, top = int(x1), int(y1)
    mask = np.zeros((image["height"], image["width"]), bool)
    height, width = mask[top : top + pixels.shape[0], left : left + pixels.shape[1]].shape
    mask[top : top + height, left : left + width] = pixels[:height, :width] > 0
    return mask
