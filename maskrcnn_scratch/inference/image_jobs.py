"""The images of a command: where each is read from, and what it is called in the results."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, NamedTuple

from torch import Tensor

from maskrcnn_scratch.data.coco_fields import parse_file_name, parse_id
from maskrcnn_scratch.data.coco_json import read_coco_json
from maskrcnn_scratch.data.image import read_header, read_image_and_header


@dataclass(frozen=True)
class ImageJob:
    """One image to predict.

    Attributes:
        file: its file.
        file_name: its name in the results: that of the annotation file, or the path below the
            folder that was searched.
        image_id: its number in COCO results.
        page: page of a document or frame of an animation, from 0; None for the only image.
        size: (height, width) that the annotation file states, if there is one.
    """

    file: Path
    file_name: str
    image_id: int
    page: int | None = None
    size: tuple[int, int] | None = None

    @property
    def output_name(self) -> str:
        """Relative path of the output files, without suffix."""
        name = PurePosixPath(self.file_name.replace("\\", "/"))
        parts = [part for part in name.parts if part not in ("..", name.anchor)]
        path = str(PurePosixPath(*parts).with_suffix(""))
        return path if self.page is None else f"{path}-page{self.page + 1}"


class Entry(NamedTuple):
    """An image of an annotation file. ``size``: (height, width), None if it is not given."""

    image_id: int
    file_name: str
    size: tuple[int, int] | None


class Annotations(NamedTuple):
    """The images of an annotation file by file name, and its category names by id.

    ``used_categories``: ids of the categories that have annotations.
    """

    entries: dict[str, Entry]
    categories: dict[int, str]
    used_categories: set[int]


def read_annotations(path: str | PathLike[str]) -> Annotations:
    """Reads a COCO annotation file; raises a ValueError that names it and the image."""
    content = read_coco_json(path)
    entries: dict[str, Entry] = {}
    seen: set[int] = set()
    for index, image in enumerate(content["images"]):
        try:
            entry = _entry(image)
        except ValueError as error:
            raise ValueError(f"{path}: images[{index}]: {error}") from None
        if entry.image_id in seen:
            raise ValueError(f"{path}: image id {entry.image_id} is used twice")
        if entry.file_name in entries:
            raise ValueError(f"{path}: file_name {entry.file_name!r} is used twice")
        seen.add(entry.image_id)
        entries[entry.file_name] = entry
    try:
        categories = {
            parse_id(category.get("id")): category["name"] for category in content["categories"]
        }
    except ValueError as error:
        raise ValueError(f"{path}: categories: {error}") from None
    found = {repr(annotation.get("category_id")) for annotation in content["annotations"]}
    return Annotations(entries, categories, {id for id in categories if repr(id) in found})


def _entry(image: Mapping[str, Any]) -> Entry:
    sides = image.get("height"), image.get("width")
    size = sides if all(isinstance(side, int) for side in sides) else None
    return Entry(parse_id(image.get("id")), parse_file_name(image.get("file_name")), size)  # type: ignore[arg-type]


def match_entries(files: Sequence[Path], entries: Mapping[str, Entry]) -> list[Entry | None]:
    """The entry of each file, None if it has none.

    The longest end of a file's path that is the ``file_name`` of an entry decides. If there is
    none, the entry whose ``file_name`` ends in the file's name is taken, if it is the only one.

    Raises:
        ValueError: two files have the same entry.
    """
    by_path = {_slashes(name): entry for name, entry in entries.items()}
    by_last: dict[str, list[Entry]] = {}
    for path, listed in by_path.items():
        by_last.setdefault(PurePosixPath(path).name, []).append(listed)
    found: list[Entry | None] = []
    owners: dict[int, Path] = {}
    for file in files:
        entry = _match(file, by_path, by_last)
        if entry is not None and owners.setdefault(entry.image_id, file) != file:
            raise ValueError(
                f"{owners[entry.image_id]} and {file} are both {entry.file_name!r} in the "
                "annotations"
            )
        found.append(entry)
    return found


def _match(
    file: Path, by_path: Mapping[str, Entry], by_last: Mapping[str, list[Entry]]
) -> Entry | None:
    parts = file.absolute().parts
    for start in range(len(parts)):
        if entry := by_path.get("/".join(parts[start:])):
            return entry
    last = by_last.get(file.name, [])
    return last[0] if len(last) == 1 else None


def _slashes(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def make_jobs(files: Mapping[Path, str], all_pages: bool = False) -> list[ImageJob]:
    """Jobs for files without annotations.

    Image ids are the file names if all are distinct numbers, otherwise 1, 2, ...

    Args:
        files: file and its name in the results.
        all_pages: one job per page of a document or frame of an animation; a file that cannot be
            read has one job.
    """
    pages: list[tuple[Path, str, int | None]] = []
    for file, name in files.items():
        count = _pages(file) if all_pages else 1
        pages += [(file, name, page if count > 1 else None) for page in range(count)]
    ids = image_ids([file for file, _, _ in pages])
    return [
        ImageJob(file, name, id, page) for (file, name, page), id in zip(pages, ids, strict=True)
    ]


def _pages(file: Path) -> int:
    try:
        return read_header(file).pages
    except (FileNotFoundError, ValueError):
        return 1  # reported when it is read


def image_ids(images: Iterable[Path]) -> list[int]:
    """COCO image ids: the file names, if all are distinct numbers; otherwise 1, 2, ..."""
    stems = [image.stem for image in images]
    if all(stem.isdecimal() for stem in stems):
        ids = [int(stem) for stem in stems]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(stems) + 1))


class JobReader:
    """Reads the images of jobs, in any thread.

    It warns of the first image that its EXIF orientation turns, and of the first file with several
    pages of which only one is read.

    Args:
        apply_exif: rotates images by their EXIF orientation, as image viewers do.
    """

    def __init__(self, apply_exif: bool = True) -> None:
        self.apply_exif = apply_exif
        self._warned: set[str] = set()
        self._lock = Lock()

    def read(self, job: ImageJob) -> Tensor:
        """The image, float32 RGB ``[3, H, W]`` in 0-1.

        Raises:
            FileNotFoundError, ValueError: as ``read_image``; or its size is not ``job.size``.
        """
        image, header = read_image_and_header(job.file, self.apply_exif, job.page or 0)
        size = (image.shape[1], image.shape[2])
        if job.size is not None and job.size != size:
            turned = self.apply_exif and header.is_turned and job.size == size[::-1]
            raise ValueError(
                f"{job.file}: {size[0]} x {size[1]} (height x width), but {job.size[0]} x "
                f"{job.size[1]} in the annotations" + ("; it fits with --no-exif" if turned else "")
            )
        if self.apply_exif and header.turn_is_uncertain(job.size):
            self._warn(
                f"{job.file}: turned by its EXIF orientation, as in image viewers; --no-exif reads "
                "images as they are stored"
            )
        if header.pages > 1 and job.page is None:
            self._warn(
                f"{job.file}: only the first of its {header.pages} pages is used; --all-pages "
                "uses all"
            )
        return image

    def _warn(self, text: str) -> None:
        kind = text.rpartition("; ")[2]
        with self._lock:
            if kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(f"{text} (later such images are not listed)", stacklevel=3)
