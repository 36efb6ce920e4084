"""Data sets in COCO format, as map-style data sets of (image, target).

Legend: N objects of one image, A annotations of the file, H W height and width of an image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_scratch.data.coco_json import PackedSegmentation, read_coco_json
from maskrcnn_scratch.data.image import image_size, read_image
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.plain_values import shown

Target = dict[str, Any]

_LONGEST_PATH = 4096  # characters; Linux's limit in bytes
_TOO_MUCH = 2.0**63


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """Images and instance masks of a COCO annotation file.

    Item: the image, float32 RGB [3, H, W] in 0-1, and a dict of

    - ``boxes`` float32 [N, 4], xyxy in pixels, inside the image; ``labels`` int64 [N], from 1;
      ``masks`` uint8 [N, H, W]; ``area`` float32 [N]; ``iscrowd`` uint8 [N];
    - ``annotation_ids`` int64 [N], ``image_id`` int and ``file_name`` str, for messages.

    Images without annotations are items with N = 0. Crowd regions are left out unless
    ``keep_crowd``. Boxes are clipped to their image; an annotation of whose box nothing is left is
    left out, with one warning for all. Masks (polygons, compressed and uncompressed RLE) are drawn
    when an item is read, as pycocotools draws them.

    ``category_labels`` maps category ids to labels, and is kept as the attribute of that name.
    Without it the categories get 1 to C in the order of their ids; a trained model needs the
    mapping it was trained with. ``categories`` are the names by id that the file itself has.

    A file name that leads out of the image folder is refused unless ``allow_outside``.

    Raises ``FileNotFoundError`` where file or folder are missing; ``ValueError`` for a file that is
    no COCO data set or holds no image, for duplicate image ids and unknown image or category ids;
    and, when an item is read, for a mask that is missing or malformed and an image of another size
    than its entry. Each names the file and the id.
    """

    def __init__(
        self,
        annotation_file: str | PathLike[str],
        image_folder: str | PathLike[str],
        category_labels: Mapping[int, int] | None = None,
        apply_exif: bool = True,
        keep_crowd: bool = False,
        allow_outside: bool = False,
    ) -> None:
        self.annotation_file = Path(annotation_file)
        self.image_folder = Path(image_folder)
        self.apply_exif = apply_exif
        self.allow_outside = allow_outside
        if not self.image_folder.is_dir():
            raise FileNotFoundError(f"{image_folder}: no such folder of images")
        content = read_coco_json(annotation_file)
        if not content["images"]:
            raise ValueError(f"{annotation_file}: the data set holds no image")
        self.categories = self._read_categories(content["categories"])
        if category_labels is None:
            category_labels = {id: label for label, id in enumerate(sorted(self.categories), 1)}
        self.category_labels = dict(category_labels)
        self.class_names = {
            label: self.categories.get(category, str(category))
            for category, label in self.category_labels.items()
        }
        self._index_images(content["images"])
        self._index_annotations(content["annotations"], keep_crowd)

    @property
    def num_classes(self) -> int:
        """Classes of a model for these labels, background included."""
        return max(self.category_labels.values(), default=0) + 1

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        size = int(self.sizes[index, 0]), int(self.sizes[index, 1])
        rows = slice(self._first_rows[index], self._first_rows[index + 1])
        image = self._read_image(index, size)  # before masks of the size that the file claims
        target = {
            "boxes": torch.from_numpy(self._boxes[rows].astype(np.float32)),
            "labels": torch.from_numpy(self._labels[rows].astype(np.int64)),
            "masks": torch.from_numpy(self._draw_masks(rows, size)),
            "area": torch.from_numpy(self._areas[rows].astype(np.float32)),
            "iscrowd": torch.from_numpy(self._crowds[rows].astype(np.uint8)),
            "annotation_ids": torch.from_numpy(self._ids[rows].astype(np.int64)),
            "image_id": int(self.image_ids[index]),
            "file_name": self.file_name(index),
        }
        return image, target

    def file_name(self, index: int) -> str:
        """Of an image, as the annotation file has it."""
        start, end = self._file_name_ends[index : index + 2]
        return self._file_names[start:end].tobytes().decode()

    def _read_image(self, index: int, size: tuple[int, int]) -> Tensor:
        path = self.image_folder / self.file_name(index)
        image = read_image(path, self.apply_exif)
        found = image.shape[1:]
        if found != size:
            turned = self.apply_exif and image_size(path, apply_exif=False) == size
            raise ValueError(
                f"{path}: image id {self.image_ids[index]} is {found[0]} x {found[1]} (height x "
                f"width), but {size[0]} x {size[1]} in {self.annotation_file}"
                + ("; it fits with apply_exif=False" if turned else "")
            )
        return image

    def _draw_masks(self, rows: slice, size: tuple[int, int]) -> np.ndarray:
        """Masks uint8 [N, H, W] of these annotations."""
        masks = np.zeros((rows.stop - rows.start, *size), np.uint8)
        for mask, row in zip(masks, range(rows.start, rows.stop), strict=True):
            packed = self._segmentations[
                self._segmentation_ends[row] : self._segmentation_ends[row + 1]
            ]
            try:
                if not packed.size:
                    raise ValueError("no segmentation")
                segmentation = PackedSegmentation(packed).unpack()
                mask[:] = rle.decode(rle.from_segmentation(segmentation, size))
            except ValueError as error:
                raise ValueError(
                    f"{self.annotation_file}: annotation {self._ids[row]}: {error}"
                ) from None
        return masks

    def _read_categories(self, categories: list[dict[str, Any]]) -> dict[int, str]:
        try:
            return {
                parse_id(c.get("id")): parse_text(str(c.get("name", c["id"]))) for c in categories
            }
        except ValueError as error:
            raise ValueError(f"{self.annotation_file}: categories: {error}") from None

    def _index_images(self, images: list[dict[str, Any]]) -> None:
        table = np.empty((len(images), 3), np.int64)
        names: list[bytes] = []
        for row, image in zip(table, images, strict=True):
            try:
                name = parse_file_name(image.get("file_name"), self.allow_outside)
            except ValueError as error:
                raise ValueError(
                    f"{self.annotation_file}: image id {shown(image.get('id'))}: {error}"
                ) from None
            names.append(name.encode())
            try:
                row[:] = parse_id(image.get("id")), image["height"], image["width"]
                if min(row[1:]) < 1:
                    raise ValueError(f"{row[1]} x {row[2]} pixels")
            except (KeyError, ValueError, TypeError, OverflowError) as error:
                raise ValueError(
                    f"{self.annotation_file}: image id {shown(image.get('id'))} "
                    f"({shown(name)}): id, height or width: {shown(error)}"
                ) from None
        self.image_ids, self.sizes = table[:, 0].copy(), table[:, 1:].copy()
        # Not an array of texts, which gives each name the memory of the longest.
        self._file_names = np.frombuffer(b"".join(names), np.uint8)
        self._file_name_ends = np.cumsum([0, *map(len, names)])
        ids, counts = np.unique(self.image_ids, return_counts=True)
        if counts.max() > 1:
            twice = ids[counts.argmax()]
            raise ValueError(f"{self.annotation_file}: image id {twice} stands there twice")

    def _index_annotations(self, annotations: list[dict[str, Any]], keep_crowd: bool) -> None:
        """Flat arrays, sorted by image; ``_first_rows[i]`` is where image ``i`` begins."""
        index_of = {image_id: index for index, image_id in enumerate(self.image_ids.tolist())}
        table = np.empty((len(annotations), 8))  # image index, label, x, y, w, h, area, crowd
        for row, annotation in zip(table, annotations, strict=True):
            try:
                row[:] = self._parse(annotation, index_of)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(
                    f"{self.annotation_file}: annotation {shown(annotation.get('id'))}: "
                    f"{shown(error, 200)}"
                ) from None
        images = table[:, 0].astype(np.int64)
        limits = self.sizes[images][:, [1, 0, 1, 0]]  # [A, 4]
        boxes = np.clip(np.hstack([table[:, 2:4], table[:, 2:4] + table[:, 4:6]]), 0, limits)
        visible = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)  # [A]
        wanted = keep_crowd | (table[:, 7] == 0)  # [A]
        if not visible[wanted].all():
            ids = [annotations[row]["id"] for row in np.flatnonzero(wanted & ~visible)]
            warnings.warn(
                f"{self.annotation_file}: left out {len(ids)} annotations whose box is degenerate "
                f"or outside its image: {', '.join(map(str, ids[:10]))}{' ...' * (len(ids) > 10)}",
                stacklevel=3,
            )
        order = np.argsort(images, kind="stable")
        order = order[(wanted & visible)[order]]
        self._first_rows = np.searchsorted(images[order], np.arange(len(self.image_ids) + 1))
        self._labels = table[order, 1].astype(np.int32)
        self._boxes = boxes[order]
        self._areas = table[order, 6]
        self._crowds = table[order, 7].astype(np.uint8)
        self._ids = np.array([annotations[row]["id"] for row in order], np.int64)
        packed = [annotations[row].get("segmentation", b"") for row in order]
        self._segmentations = np.frombuffer(b"".join(packed), np.uint8)
        self._segmentation_ends = np.cumsum([0, *map(len, packed)])

    def _parse(self, annotation: dict[str, Any], index_of: dict[int, int]) -> tuple[float, ...]:
        missing = {"id", "image_id", "category_id", "bbox"} - annotation.keys()
        if missing:
            raise ValueError(f"no {min(missing)!r}")
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        parse_id(annotation["id"])
        if image_id not in index_of:
            raise ValueError(f"unknown image id {shown(repr(image_id))}")
        if category_id not in self.category_labels:
            raise ValueError(f"unknown category id {shown(repr(category_id))}")
        x, y, width, height = parse_bbox(annotation["bbox"])
        return (
            index_of[image_id],
            self.category_labels[category_id],
            *(x, y, width, height),
            parse_area(annotation.get("area", width * height)),
            parse_crowd(annotation.get("iscrowd")),
        )


def to_coco(dataset: Dataset[tuple[Tensor, Target]]) -> dict[str, Any]:
    """The content of a COCO annotation file, masks as compressed RLE, for a data set in memory.

    For any data set whose items, ``category_labels`` and ``class_names`` are as of
    :class:`CocoDataset`; reads every item once.
    """
    names: dict[int, str] = dataset.class_names  # type: ignore[attr-defined]
    categories = {
        label: category
        for category, label in dataset.category_labels.items()  # type: ignore[attr-defined]
    }
    images, annotations = [], []
    for index in range(len(dataset)):  # type: ignore[arg-type]
        image, target = dataset[index]
        height, width = image.shape[1:]
        images.append(
            {
                "id": target["image_id"],
                "file_name": target["file_name"],
                "height": height,
                "width": width,
            }
        )
        for row, (x1, y1, x2, y2) in enumerate(target["boxes"].tolist()):
            annotations.append(
                {
                    "id": int(target["annotation_ids"][row]),
                    "image_id": target["image_id"],
                    "category_id": categories[int(target["labels"][row])],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(target["area"][row]),
                    "iscrowd": int(target["iscrowd"][row]),
                    "segmentation": rle.encode(target["masks"][row].numpy()),
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": categories[label], "name": names[label]} for label in categories],
    }


def parse_id(id: object) -> int:
    """An id; ``ValueError`` unless it is a whole number of 64 bits."""
    if not isinstance(id, (int, float)) or id != id // 1 or abs(id) >= 2**63:
        raise ValueError(f"id is not a whole number: {shown(repr(id))}")
    return int(id)


def parse_text(text: str) -> str:
    """The text; ``ValueError`` unless it can be written as UTF-8 (JSON can spell other ones)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"text with lone surrogates: {shown(text)}") from None
    return text


def parse_file_name(name: object, allow_outside: bool = False) -> str:
    """A file's path in the image folder; ``ValueError`` where it is none, or leads out of it."""
    if not isinstance(name, str) or not name:
        raise ValueError("no file_name")
    if "\0" in name or len(name) > _LONGEST_PATH:
        raise ValueError(f"file_name cannot be that of a file: {shown(name)}")
    path = Path(parse_text(name))
    if not allow_outside and (path.is_absolute() or path.drive or ".." in path.parts):
        raise ValueError(
            f"file_name leads out of the image folder: {shown(name)}; --allow-outside "
            "(allow_outside=True) reads it all the same"
        )
    return name


def parse_area(area: object) -> float:
    """An annotation's area in pixels; ``ValueError`` unless it is a number from 0."""
    if not isinstance(area, (int, float)) or not 0 <= area < _TOO_MUCH:
        raise ValueError(f"area is not a number of pixels: {shown(repr(area))}")
    return float(area)


def parse_crowd(iscrowd: object) -> bool:
    """Whether an annotation is of a crowd; ``ValueError`` unless it is 0, 1 or missing."""
    if iscrowd not in (0, 1, None):
        raise ValueError(f"iscrowd is neither 0 nor 1: {shown(repr(iscrowd))}")
    return bool(iscrowd)


def parse_bbox(bbox: object) -> tuple[float, float, float, float]:
    """An annotation's (x, y, width, height); ``ValueError`` unless it is four finite numbers."""
    try:
        x, y, width, height = map(float, bbox)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"bbox is not four numbers: {shown(repr(bbox))}") from None
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"bbox is not finite: {shown(repr(bbox))}")
    return x, y, width, height
