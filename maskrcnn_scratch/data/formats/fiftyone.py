"""FiftyOne's own format: ``samples.json`` beside a folder ``data`` of images."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.data.formats.collect import Collected, base_name, image_size, inflate


def is_fiftyone(content: Any) -> bool:
    samples = content.get("samples") if isinstance(content, dict) else None
    return (
        isinstance(samples, list)
        and bool(samples)
        and all(isinstance(sample, dict) and "filepath" in sample for sample in samples[:20])
    )


def read(path: Path) -> Collected:
    """Reads the boxes and masks of all ``Detections`` of each sample; other fields are counted.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read, naming it.
    """
    folder = path.parent
    data = Collected(path, folder)
    for sample in read_json(path)["samples"]:
        name = _image_name(folder, str(sample["filepath"]))
        size = image_size(folder / name)
        image = data.add_image(name, size)
        for field, value in sample.items():
            kind = value.get("_cls") if isinstance(value, dict) else None
            if kind in ("Polylines", "Keypoints", "Segmentation"):
                data.skip(f"fields of type {kind}")
            if kind != "Detections":
                continue
            try:
                for found in value["detections"]:
                    _add(data, image, found, size)
            except (KeyError, TypeError, ValueError, OSError) as error:
                raise ValueError(f"{path}: {name}: {field} is not readable ({error!r})") from None
    return data


def _image_name(folder: Path, filepath: str) -> str:
    """The path below ``folder``; exports have it, and databases an absolute one."""
    for name in (filepath.replace("\\", "/"), f"data/{base_name(filepath)}", base_name(filepath)):
        inside = ".." not in Path(name).parts and not Path(name).is_absolute()
        if inside and (folder / name).is_file():
            return name
    raise FileNotFoundError(f"{folder}: image {filepath} was not found in it")


def _add(
    data: Collected, image: dict[str, Any], found: dict[str, Any], size: tuple[int, int]
) -> None:
    x, y, width, height = map(float, found["bounding_box"])  # fractions of the image
    box = [x * size[1], y * size[0], (x + width) * size[1], (y + height) * size[0]]
    packed = found.get("mask")
    if packed is None:
        data.add_object(image, str(found["label"]), box=box)
        return
    binary = packed["$binary"]
    text = binary["base64"] if isinstance(binary, dict) else binary
    array = np.load(io.BytesIO(inflate(base64.b64decode(text), size)), allow_pickle=False)
    left, top, right, bottom = (round(value) for value in box)
    if min(left, top) < 0 or right > size[1] or bottom > size[0] or array.ndim != 2:
        raise ValueError("a mask reaches outside of its image")
    mask = np.zeros(size, bool)
    if right > left and bottom > top:
        part = Image.fromarray(array.astype(bool)).resize((right - left, bottom - top), 0)
        mask[top:bottom, left:right] = np.asarray(part)
    data.add_object(image, str(found["label"]), mask=mask)
