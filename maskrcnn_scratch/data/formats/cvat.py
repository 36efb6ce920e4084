"""CVAT for images 1.1: one ``annotations.xml``."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from maskrcnn_scratch.data.formats.collect import Collected, circle, image_files
from maskrcnn_scratch.data.formats.xml import number, read_xml


def read(path: Path) -> Collected:
    """Reads a CVAT file; shapes of one label and ``group_id`` are one object.

    Raises:
        ValueError: a file that cannot be read, naming it.
    """
    root = read_xml(path)
    folder = _image_folder(path, root)
    data = Collected(path, folder)
    for label in root.iterfind("./meta//label"):
        if name := label.findtext("name"):
            data.category(name)
    for element in root.iter("image"):
        size = (int(number(element, "height", path)), int(number(element, "width", path)))
        image = data.add_image(element.get("name", ""), size)
        groups: dict[tuple[str, str], list[list[float]]] = {}
        for index, shape in enumerate(element):
            label_name = shape.get("label", "object")
            if shape.tag == "mask":
                data.add_object(image, label_name, mask=_mask(shape, size, path))
                continue
            if shape.tag == "box":
                box = [number(shape, key, path) for key in ("xtl", "ytl", "xbr", "ybr")]
                data.add_object(image, label_name, box=box)
                continue
            polygon = _polygon(shape, path)
            if polygon is None:
                data.skip(f"shapes of type {shape.tag}")
                continue
            group = shape.get("group_id") or "0"
            key = (label_name, f"alone {index}" if group == "0" else group)
            groups.setdefault(key, []).append(polygon)
        for (label_name, _), polygons in groups.items():
            data.add_object(image, label_name, polygons=polygons)
    return data


def _image_folder(path: Path, root: ElementTree.Element) -> Path:
    """The folder that the names in the file are relative to: the one that holds the first."""
    first = root.find("image")
    name = "" if first is None else first.get("name", "")
    for folder in (path.parent / "images", path.parent, path.parent / "images" / "default"):
        if (folder / name).is_file():
            return folder
    found = [file for file in image_files(path.parent, strict=False) if file.name == name]
    return found[0].parent if found else path.parent / "images"


def _polygon(shape: ElementTree.Element, path: Path) -> list[float] | None:
    if shape.tag == "polygon":
        pairs = shape.get("points", "").replace(";", ",").split(",")
        try:
            return [float(value) for value in pairs]
        except ValueError:
            raise ValueError(f"{path}: a polygon whose points are no numbers") from None
    if shape.tag == "ellipse":
        return circle(*(number(shape, key, path) for key in ("cx", "cy", "rx", "ry")))
    return None


def _mask(shape: ElementTree.Element, size: tuple[int, int], path: Path) -> np.ndarray:
    """CVAT's own run lengths, row by row inside of a box, background first."""
    left, top, width, height = (
        int(number(shape, key, path)) for key in ("left", "top", "width", "height")
    )
    try:
        runs = [int(run) for run in shape.get("rle", "").split(",")]
    except ValueError:
        runs = []
    if sum(runs) != width * height or min(runs, default=-1) < 0 or left < 0 or top < 0:
        raise ValueError(f"{path}: a mask whose run lengths do not fill {height} x {width} pixels")
    if top + height > size[0] or left + width > size[1]:
        raise ValueError(f"{path}: a mask that reaches outside of its image")
    values = np.arange(len(runs)) % 2 == 1
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = np.repeat(values, runs).reshape(height, width)
    return mask
