"""Reading COCO's JSON files, also as annotation tools write them.

Fields that nobody reads here (``info``, ``licenses``, ...) may have any content. JSON may be UTF-8
or UTF-16, with or without a byte order mark.
"""

from __future__ import annotations

import json
import pickle
import warnings
from os import PathLike
from typing import Any

NUMBERS = {
    "images": ("id", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "area", "iscrowd"),
    "categories": ("id",),
}


class PackedSegmentation(bytes):
    """An annotation's ``segmentation``, serialised until it is needed to save memory.

    An estimate: a tenth of the memory of the lists of a polygon.
    """

    @classmethod
    def pack(cls, segmentation: object) -> PackedSegmentation:
        return cls(pickle.dumps(segmentation, protocol=pickle.HIGHEST_PROTOCOL))

    def unpack(self) -> Any:
        # The bytes were written by pack() in this process or its parent.
        return pickle.loads(self)


def read_coco_json(path: str | PathLike[str]) -> dict[str, Any]:
    """Reads a COCO annotation file, with each ``segmentation`` as a :class:`PackedSegmentation`.

    Segmentations are packed while the file is parsed, so that the lists of a large file are never
    in memory together. Numbers given as text, polygons that are not in a list, and names that are
    not text are converted, with one warning. Parts of fewer than 3 points are dropped from objects
    that have other parts. A file without ``annotations``, such as COCO's
    ``image_info`` files, has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON or not COCO annotations.
    """
    reader = _Reader()
    content = read_json(path, reader.pack_segmentation)
    return _checked(content, str(path), reader)


def coco_content(content: dict[str, Any], name: str = "annotations") -> dict[str, Any]:
    """The content of a COCO annotation file, as ``read_coco_json`` returns it for a file.

    Raises:
        ValueError: it is not COCO annotations; the message begins with ``name``.
    """
    reader = _Reader()
    packed = dict(content)
    for key in NUMBERS:
        if isinstance(entries := content.get(key), list):
            packed[key] = [
                reader.pack_segmentation(dict(entry)) if isinstance(entry, dict) else entry
                for entry in entries
            ]
    return _checked(packed, name, reader)


def read_json(path: str | PathLike[str], object_hook: Any = None) -> Any:
    """Reads a JSON file; raises a FileNotFoundError or ValueError that names it."""
    try:
        with open(path, "rb") as file:
            return json.load(file, object_hook=object_hook)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def _checked(content: Any, name: str, reader: _Reader) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{name}: not COCO annotations but a {type(content).__name__}")
    if content.get("annotations") is None and "images" in content:
        content["annotations"] = []
    for key in NUMBERS:
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{name}: not COCO annotations, {key!r} is not a list of objects")
        for entry in entries:
            reader.convert(entry, key)
    if reader.found:
        shown = "; ".join(f"{what} ({count})" for what, count in reader.found.items())
        warnings.warn(f"{name}: converted {shown}", stacklevel=3)
    return content


def _is_degenerate(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) < 6


class _Reader:
    """Converts what can only mean one thing, and counts the conversions by kind."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def convert(self, entry: dict[str, Any], kind: str) -> None:
        """Converts the fields of one entry of ``images``, ``annotations`` or ``categories``."""
        for field in NUMBERS[kind]:
            if field in entry:
                value = self._number(entry[field])
                whole = isinstance(value, float) and value.is_integer()
                entry[field] = int(value) if whole else value
        bbox = entry.get("bbox")
        if isinstance(bbox, list) and str in map(type, bbox):
            entry["bbox"] = [self._number(value) for value in bbox]
        if kind == "categories" and not isinstance(entry.get("name"), str):
            if entry.get("name") is not None:
                self._count("names that are not text")
            entry["name"] = str(entry.get("id") if entry.get("name") is None else entry["name"])

    def pack_segmentation(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The hook of the JSON parser: packs ``segmentation`` where an object has it."""
        if "segmentation" in entry:
            polygons = entry["segmentation"]
            if isinstance(polygons, list):
                polygons = self._polygons(polygons)
            entry["segmentation"] = PackedSegmentation.pack(polygons)
        return entry

    def _polygons(self, polygons: list[Any]) -> list[Any]:
        if len(polygons) >= 6 and all(isinstance(value, (int, float, str)) for value in polygons):
            self._count("polygons that are not in a list")
            polygons = [polygons]
        numbers = [
            [self._number(value) for value in polygon]
            if isinstance(polygon, list) and str in set(map(type, polygon))
            else polygon
            for polygon in polygons
        ]
        whole = [polygon for polygon in numbers if not _is_degenerate(polygon)]
        if not whole and any(numbers):
            return numbers  # the mask is malformed, not only a part of it
        if len(whole) < len(numbers):
            self._count("objects with parts of fewer than 3 points, without those")
        return whole

    def _number(self, value: Any) -> Any:
        """Text as the number that it shows; other values, and other text, as they are."""
        if isinstance(value, str):
            for kind in (int, float):
                try:
                    number = kind(value)
                except ValueError:
                    continue
                self._count("numbers given as text")
                return number
        return value

    def _count(self, kind: str) -> None:
        self.found[kind] = self.found.get(kind, 0) + 1
