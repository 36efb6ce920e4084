"""Reading COCO's JSON files."""

from __future__ import annotations

import json
import pickle
import re
from mmap import ACCESS_READ, mmap
from os import PathLike
from pathlib import Path
from typing import Any


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
    in memory together.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON or not COCO annotations.
    """
    content = read_json(path, _pack_segmentation)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not COCO annotations but a {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: not COCO annotations, {key!r} is not a list of objects")
    return content


def read_json(path: str | PathLike[str], object_hook: Any = None) -> Any:
    """Reads a JSON file; raises a FileNotFoundError or ValueError that names it."""
    try:
        with open(path, "rb") as file:
            return json.load(file, object_hook=object_hook)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def find_image_folder(annotation_file: str | PathLike[str]) -> Path:
    """The folder near an annotation file that has its first image, else the file's own folder.

    For ``instances_X.json`` it looks in X, ``images`` and the folder itself, and one folder up.
    """
    path = Path(annotation_file)
    names = (path.stem.removeprefix("instances_"), "images", ".")
    folders = [base / name for base in (path.parent, path.parent.parent) for name in names]
    first = _first_file_name(path)
    return next((each for each in folders if first and (each / first).is_file()), path.parent)


def _first_file_name(path: Path) -> str | None:
    """The first file name, found without parsing a file that may be large."""
    try:
        with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            found = re.search(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', content)
            return str(json.loads(found[1])) if found else None
    except (OSError, ValueError):
        return None


def _pack_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" in entry:
        entry["segmentation"] = PackedSegmentation.pack(entry["segmentation"])
    return entry
