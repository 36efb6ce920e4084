"""VGG Image Annotator (VIA): one JSON file with regions per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.data.formats.collect import Collected, circle, image_files

NAMES = ("class", "label", "name", "type", "category", "object")  # attributes that hold the class


def is_via(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    entries = content.get("_via_img_metadata", content)
    return isinstance(entries, dict) and any(
        isinstance(entry, dict) and {"filename", "regions"} <= entry.keys()
        for entry in list(entries.values())[:20]
    )


def read(path: Path) -> Collected:
    """Reads a VIA project or its JSON export, versions 1 and 2.

    Raises:
        FileNotFoundError, ValueError: an image that cannot be found or read, naming it.
    """
    content = read_json(path)
    by_name = {file.name: file for file in image_files(path.parent, strict=False)}
    data = Collected(path, path.parent)
    for entry in content.get("_via_img_metadata", content).values():
        name = str(entry["filename"])
        if name not in by_name:
            raise FileNotFoundError(f"{path}: image {name} was not found beside it")
        image = data.add_image(by_name[name].relative_to(path.parent).as_posix())
        regions = entry["regions"]
        for region in regions.values() if isinstance(regions, dict) else regions:
            shape = region.get("shape_attributes", {})
            polygon = _polygon(shape)
            label = _label(region.get("region_attributes") or {})
            if polygon is not None:
                data.add_object(image, label, polygons=[polygon])
            elif shape.get("name") == "rect":
                x, y = shape["x"], shape["y"]
                data.add_object(image, label, box=(x, y, x + shape["width"], y + shape["height"]))
            else:
                data.skip(f"regions of type {shape.get('name')}")
    return data


def _polygon(shape: dict[str, Any]) -> list[float] | None:
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        points = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        return [float(value) for point in points for value in point]
    if kind == "circle":
        return circle(shape["cx"], shape["cy"], shape["r"])
    if kind == "ellipse":
        return circle(shape["cx"], shape["cy"], shape["rx"], shape["ry"])
    return None


def _label(attributes: dict[str, Any]) -> str:
    """The class of a region: its only attribute, or the one that is called so."""
    if len(attributes) == 1:
        value = next(iter(attributes.values()))
    else:
        value = next((attributes[name] for name in NAMES if name in attributes), "object")
    if isinstance(value, dict):  # check boxes: {"cat": true}
        value = next((name for name, on in value.items() if on), "object")
    return str(value).strip() or "object"
