"""Pascal VOC: an XML file per image, and masks in ``SegmentationObject`` where there are some."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from maskrcnn_scratch.data.formats.collect import Collected, base_name, image_named
from maskrcnn_scratch.data.formats.xml import number, read_xml, text

VOID = 255  # index of pixels on a border between objects
FOLDERS = ("JPEGImages", "images", "Images", ".")


def read(folder: Path, files: list[Path]) -> Collected:
    """Reads VOC files. Coordinates count from 1 and include the last pixel, as VOC defines them.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read, naming it.
    """
    data = Collected(folder, folder)
    for path in files:
        root = read_xml(path)
        image_path = _image_path(path, text(root, "filename"))
        image = data.add_image(image_path.relative_to(folder).as_posix(), _size(root, path))
        masks = _object_masks(path, image["height"], image["width"])
        for index, element in enumerate(root.iter("object"), 1):
            box_element = element.find("bndbox")
            if box_element is None:
                data.skip("objects without a box")
                continue
            x1, y1, x2, y2 = (
                number(box_element, key, path) for key in ("xmin", "ymin", "xmax", "ymax")
            )
            mask = None if masks is None else masks == index
            polygon = _polygon(element, path)
            name = text(element, "name") or "object"
            if mask is not None and mask.any():
                data.add_object(image, name, mask=mask)
            else:
                box = (x1 - 1, y1 - 1, x2, y2)
                data.add_object(image, name, box=box, polygons=[polygon] if polygon else [])
    return data


def _image_path(path: Path, file_name: str) -> Path:
    """The image of an annotation file: by the name in it, else by the file's own."""
    name = base_name(file_name)
    for parent in (path.parent.parent, path.parent):
        for folder in FOLDERS:
            if name and (parent / folder / name).is_file():
                return parent / folder / name
            if found := image_named(path.stem, parent / folder):
                return found
    raise FileNotFoundError(f"{path}: its image {name or path.stem} was not found beside it")


def _size(root: ElementTree.Element, path: Path) -> tuple[int, int] | None:
    element = root.find("size")
    if element is None:
        return None
    height, width = int(number(element, "height", path)), int(number(element, "width", path))
    return (height, width) if height > 0 and width > 0 else None


def _object_masks(path: Path, height: int, width: int) -> np.ndarray | None:
    """``[H, W]`` with the number of the object at each pixel, in the order of the XML file."""
    mask_path = path.parent.parent / "SegmentationObject" / f"{path.stem}.png"
    if not mask_path.is_file():
        return None
    numbers = np.asarray(Image.open(mask_path))  # indices of a palette
    if numbers.shape != (height, width):
        raise ValueError(
            f"{mask_path}: {' x '.join(map(str, numbers.shape))}, its image is {height} x {width}"
        )
    return np.where(numbers == VOID, 0, numbers)


def _polygon(element: ElementTree.Element, path: Path) -> list[float]:
    """Roboflow's ``<polygon><x1>..</x1><y1>..</y1>...</polygon>``; empty where there is none."""
    polygon = element.find("polygon")
    if polygon is None:
        return []
    count = sum(child.tag.startswith("x") for child in polygon)
    keys = (f"{axis}{index}" for index in range(1, count + 1) for axis in "xy")
    return [number(polygon, key, path) for key in keys]
