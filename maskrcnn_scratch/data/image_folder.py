"""Finding the images of a COCO annotation file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from mmap import ACCESS_READ, mmap
from os import PathLike
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.plain_values import shown

SAMPLE = 64  # file names that are looked for in each folder
READ_AHEAD = 16  # of which each is one of so many in the file


def locate_image(folder: str | PathLike[str], file_name: str, allow_outside: bool = False) -> Path:
    """The path of an image from the ``file_name`` of its entry.

    ``file_name`` is relative to ``folder`` and may have backslashes or be a URL. If there is no
    such file, the last part of the name is tried. The path need not exist.

    Raises:
        ValueError: the name leads out of the folder (an absolute path, or ".."), the folder has no
            file of its last part either, and ``allow_outside`` is not set.
    """
    relative = _relative(file_name)
    names = dict.fromkeys((file_name, relative, Path(relative).name))
    inside = [name for name in names if allow_outside or not _leads_out(name)]
    for name in inside:
        path = Path(folder) / name
        if is_file(path):
            return path
    if _leads_out(relative) and not allow_outside:
        raise ValueError(
            f"file_name leads out of the image folder: {shown(file_name)}; --allow-outside "
            "(allow_outside=True) reads it"
        )
    return Path(folder) / relative


def is_file(path: Path) -> bool:
    """As ``path.is_file()``, and false for names that no file can have."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _leads_out(name: str) -> bool:
    path = Path(name)
    return path.is_absolute() or bool(path.drive) or ".." in path.parts


def find_image_folder(annotation_file: str | PathLike[str]) -> Path:
    """The folder near an annotation file that has most of its images, else the file's own folder.

    For ``instances_X.json`` it looks in X, ``images``, ``data`` and the folder itself, and one
    folder up; also in ``images/X`` and other folders inside ``images``. A sample of file names
    decides.
    """
    path = Path(annotation_file)
    names = sample_file_names(path)
    if not names:
        return path.parent
    folders = list(dict.fromkeys(_candidates(path)))
    hits = [
        sum(is_file(locate_image(folder, name, allow_outside=True)) for name in names)
        for folder in folders
    ]
    return folders[hits.index(max(hits))] if max(hits) else path.parent


def _candidates(path: Path) -> Iterator[Path]:
    subset = path.stem.removeprefix("instances_")
    for base in (path.parent, path.parent.parent):
        yield from (base / subset, base / "images" / subset)
        for name in ("images", "data"):
            yield base / name
        yield base
        if (base / "images").is_dir():
            yield from sorted(each for each in (base / "images").iterdir() if each.is_dir())


def name_inside(file_name: str) -> str:
    """A relative path for a copy of the image, which never leads out of a folder."""
    parts = PurePosixPath(_relative(file_name)).parts
    inside = [part for part in parts if part not in ("/", "..") and not part.endswith(":")]
    return "/".join(inside)


def _relative(file_name: str) -> str:
    """A file name with slashes; of a URL its path without the leading slash."""
    name = file_name.replace("\\", "/")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        name = unquote(urlsplit(name).path).lstrip("/")
    return name


def sample_file_names(path: Path) -> list[str]:
    """Some values of ``file_name`` in a JSON file. A large file is not parsed for that."""
    try:
        with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
                names = [image["file_name"] for image in read_json(path)["images"]]
            else:
                found = re.finditer(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', content)
                names = [str(json.loads(m[1])) for m in islice(found, SAMPLE * READ_AHEAD)]
                del found  # an iterator that is not exhausted keeps the map open
    except (OSError, ValueError, KeyError, TypeError):
        return []
    names = list(dict.fromkeys(map(str, names)))
    return names[:: max(1, len(names) // SAMPLE)]
