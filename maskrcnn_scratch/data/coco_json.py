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
    """An annotation's ``segmentation`` while it waits: a tenth of the memory of its lists."""

    @classmethod
    def pack(cls, segmentation: object) -> PackedSegmentation:
        return cls(pickle.dumps(segmentation, protocol=pickle.HIGHEST_PROTOCOL))

    def unpack(self) -> Any:
        # Only ever what pack() wrote in this process or its parent.
        return pickle.loads(self)


def read_coco_json(path: str | PathLike[str]) -> dict[str, Any]:
    """A COCO annotation file, with each ``segmentation`` as :class:`PackedSegmentation`.

    Packing happens while the file is parsed, so that a large one never stands in memory whole.
    Raises ``FileNotFoundError``, or ``ValueError`` for a file that is not JSON or not COCO.
    """
    content = read_json(path, _pack_segmentation)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not COCO annotations but a {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: not COCO annotations, {key!r} is no list of objects")
    return content


def read_json(path: str | PathLike[str], object_hook: Any = None) -> Any:
    """Any JSON file; ``FileNotFoundError`` or ``ValueError`` name it."""
    try:
        with open(path, "rb") as file:
            return json.load(file, object_hook=object_hook)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def find_image_folder(annotation_file: str | PathLike[str]) -> Path:
    """The folder near an annotation file that holds its first image, else the file's own folder.

    Of ``instances_X.json`` that is X, ``images`` or the folder itself, here or one folder up.
    """
    path = Path(annotation_file)
    names = (path.stem.removeprefix("instances_"), "images", ".")
    folders = [base / name for base in (path.parent, path.parent.parent) for name in names]
    first = _first_file_name(path)
    return next((each for each in folders if first and (each / first).is_file()), path.parent)


def _first_file_name(path: Path) -> str | None:
    """Found without parsing a file that may be large."""
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
