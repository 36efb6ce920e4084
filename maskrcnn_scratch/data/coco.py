"""Data sets in COCO format, as map-style data sets of (image, target).

Shapes: G objects of one image; H, W its height and width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_scratch.data.batch import Target
from maskrcnn_scratch.data.coco_fields import (
    parse_area,
    parse_bbox,
    parse_crowd,
    parse_file_name,
    parse_id,
    parse_text,
)
from maskrcnn_scratch.data.coco_json import PackedSegmentation, read_coco_json
from maskrcnn_scratch.data.image import image_size, read_image
from maskrcnn_scratch.data.image_folder import locate_image
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.plain_values import printable, shown

# What tools write for an object that has a box only.
_NO_MASK = (PackedSegmentation.pack(None), PackedSegmentation.pack([]))
CategoryLabels = Callable[[Mapping[int, str]], Mapping[int, int]]


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """Images and instance masks of a COCO annotation file.

    An item is the image, float32 RGB [3, H, W] in 0-1, and a dict with

    - ``boxes`` float32 [G, 4], (x1, y1, x2, y2) in pixels, inside the image; ``labels`` int64 [G],
      from 1; ``masks`` uint8 [G, H, W]; ``area`` float32 [G]; ``iscrowd`` uint8 [G];
    - ``annotation_ids`` int64 [G], ``image_id`` int and ``file_name`` str, for messages;
    - ``has_mask`` bool [G], only if an object of the image has no mask. Its ``masks`` are 0.

    An image without annotations is an item with G = 0. Boxes are clipped to their image. Boxes
    without area inside the image are dropped, with one warning for all. Masks are decoded when an
    item is read, as pycocotools decodes them, from polygons or RLE, compressed or not.

    Args:
        annotation_file: COCO annotations.
        image_folder: the folder that ``file_name`` is relative to, as in ``locate_image``.
        category_labels: label of each category id, or a function that returns it for the names by
            category id; kept as an attribute. Objects of other categories of the file are dropped.
            By default categories get labels from 1 in the order of their ids; a category 0 without
            annotations, as Roboflow writes, gets none. Pass a trained model's own mapping to it.
        apply_exif: rotate images by their EXIF orientation.
        keep_crowd: include crowd regions, which are dropped by default.
        crowds_as_objects: treat every annotation as a single object, whatever its ``iscrowd``.
        allow_outside: read images whose ``file_name`` leads out of ``image_folder``.

    Attributes:
        categories: the file's names by category id.
        used_categories: ids of the categories that have annotations.
        crowd_only: names of the labelled categories whose annotations are all crowd regions.
        masks_exist: whether any object has a mask.

    Raises:
        FileNotFoundError: the file or the folder is missing.
        ValueError: the file is not a COCO data set or has no image; an image id is used twice; an
            image or category id is unknown. When an item is read: its mask is malformed, or the
            image's size differs from its entry, or the image is outside of the folder. Each names
            the file and the id.
    """

    def __init__(
        self,
        annotation_file: str | PathLike[str],
        image_folder: str | PathLike[str],
        category_labels: Mapping[int, int] | CategoryLabels | None = None,
        apply_exif: bool = True,
        keep_crowd: bool = False,
        crowds_as_objects: bool = False,
        allow_outside: bool = False,
    ) -> None:
        self.annotation_file = Path(annotation_file)
        self.image_folder = Path(image_folder)
        self.apply_exif = apply_exif
        self.allow_outside = allow_outside
        self.crowds_as_objects = crowds_as_objects
        if not self.image_folder.is_dir():
            raise FileNotFoundError(f"{image_folder}: no such folder of images")
        content = read_coco_json(annotation_file)
        if not content["images"]:
            raise ValueError(f"{annotation_file}: the data set has no image")
        self.categories = self._read_categories(content["categories"])
        if category_labels is None:
            ids = _without_placeholder(self.categories, content["annotations"])
            category_labels = {id: label for label, id in enumerate(ids, 1)}
        elif callable(category_labels):
            category_labels = category_labels(self.categories)
        self.category_labels = dict(category_labels)
        self.class_names = {
            label: self.categories.get(category, str(category))
            for category, label in self.category_labels.items()
        }
        self._index_images(content["images"])
        found = {repr(annotation.get("category_id")) for annotation in content["annotations"]}
        self.used_categories = {id for id in self.categories if repr(id) in found}
        annotations = [
            annotation
            for annotation in content["annotations"]
            if not self._is_of_no_label(annotation.get("category_id"))
        ]
        self.crowd_only = [] if crowds_as_objects else self._find_crowd_only(annotations)
        self._index_annotations(annotations, keep_crowd)

    @property
    def num_classes(self) -> int:
        """Number of classes of a model for these labels, background included."""
        return max(self.category_labels.values(), default=0) + 1

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        size = int(self.sizes[index, 0]), int(self.sizes[index, 1])
        rows = slice(self._first_rows[index], self._first_rows[index + 1])
        image = self._read_image(index, size)  # before masks of the size in the file
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
        has_mask = np.diff(self._segmentation_ends[rows.start : rows.stop + 1]) > 0  # [G]
        if not has_mask.all():
            target["has_mask"] = torch.from_numpy(has_mask)
        return image, target

    def file_name(self, index: int) -> str:
        """The ``file_name`` of an image's entry."""
        start, end = self._file_name_ends[index : index + 2]
        return self._file_names[start:end].tobytes().decode()

    def boxes_of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float32 [G, 4] and labels int64 [G] of an item, without reading its image."""
        rows = slice(self._first_rows[index], self._first_rows[index + 1])
        return self._boxes[rows].astype(np.float32), self._labels[rows].astype(np.int64)

    def path(self, index: int) -> Path:
        """The file of an image; raises a ValueError if its name leads out of the folder."""
        try:
            return locate_image(self.image_folder, self.file_name(index), self.allow_outside)
        except ValueError as error:
            raise ValueError(
                f"{self.annotation_file}: image id {self.image_ids[index]}: {error}"
            ) from None

    def _read_image(self, index: int, size: tuple[int, int]) -> Tensor:
        path = self.path(index)
        image = read_image(path, self.apply_exif)
        found = image.shape[1:]
        if found != size:
            fits_unrotated = self.apply_exif and image_size(path, apply_exif=False) == size
            raise ValueError(
                f"{printable(path)}: image id {self.image_ids[index]} is {found[0]} x {found[1]} "
                f"(height x width), but {size[0]} x {size[1]} in {self.annotation_file}"
                + ("; it fits with --no-exif (apply_exif=False)" if fits_unrotated else "")
            )
        return image

    def _draw_masks(self, rows: slice, size: tuple[int, int]) -> np.ndarray:
        """Masks uint8 [G, H, W] of these annotations."""
        masks = np.zeros((rows.stop - rows.start, *size), np.uint8)
        for mask, row in zip(masks, range(rows.start, rows.stop), strict=True):
            packed = self._segmentations[
                self._segmentation_ends[row] : self._segmentation_ends[row + 1]
            ]
            if not packed.size:  # an object with a box only
                continue
            try:
                segmentation = PackedSegmentation(packed).unpack()
                mask[:] = rle.decode(rle.from_segmentation(segmentation, size))
            except ValueError as error:
                raise ValueError(
                    f"{self.annotation_file}: annotation {self._ids[row]}: {shown(error, 200)}"
                ) from None
        return masks

    def _read_categories(self, categories: list[dict[str, Any]]) -> dict[int, str]:
        try:
            return {
                parse_id(c.get("id")): parse_text(str(c.get("name", c["id"]))) for c in categories
            }
        except ValueError as error:
            raise ValueError(f"{self.annotation_file}: categories: {error}") from None

    def _is_of_no_label(self, category: Any) -> bool:
        """Whether the file defines a category that has no label."""
        return (
            isinstance(category, int)
            and category in self.categories
            and category not in self.category_labels
        )

    def _find_crowd_only(self, annotations: list[dict[str, Any]]) -> list[str]:
        crowds: dict[Any, bool] = {}
        for annotation in annotations:
            category = repr(annotation.get("category_id"))
            crowds[category] = crowds.get(category, True) and bool(annotation.get("iscrowd"))
        return [name for id, name in self.categories.items() if crowds.get(repr(id))]

    def _index_images(self, images: list[dict[str, Any]]) -> None:
        table = np.empty((len(images), 3), np.int64)
        names: list[bytes] = []
        for row, image in zip(table, images, strict=True):
            try:
                name = parse_file_name(image.get("file_name"))
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
        # In an array of str each name would have the size of the longest.
        self._file_names = np.frombuffer(b"".join(names), np.uint8)
        self._file_name_ends = np.cumsum([0, *map(len, names)])
        ids, counts = np.unique(self.image_ids, return_counts=True)
        if counts.max() > 1:
            twice = ids[counts.argmax()]
            raise ValueError(f"{self.annotation_file}: image id {twice} is used twice")

    def _index_annotations(self, annotations: list[dict[str, Any]], keep_crowd: bool) -> None:
        """Makes arrays of all objects, by image. ``_first_rows[i]`` is image ``i``'s first row."""
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
        limits = self.sizes[images][:, [1, 0, 1, 0]]  # [annotations, 4]
        boxes = np.clip(np.hstack([table[:, 2:4], table[:, 2:4] + table[:, 4:6]]), 0, limits)
        visible = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)  # [annotations]
        wanted = keep_crowd | (table[:, 7] == 0)  # [annotations]
        if not visible[wanted].all():
            ids = [annotations[row]["id"] for row in np.flatnonzero(wanted & ~visible)]
            warnings.warn(
                f"{self.annotation_file}: dropped {len(ids)} annotations whose box is degenerate "
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
        packed = [b"" if segmentation in _NO_MASK else segmentation for segmentation in packed]
        self.masks_exist = any(packed)
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
            parse_crowd(annotation.get("iscrowd")) and not self.crowds_as_objects,
        )


def _without_placeholder(
    categories: Mapping[int, str], annotations: list[dict[str, Any]]
) -> list[int]:
    """The category ids in order, without a category 0 that has no annotation."""
    ids = sorted(categories)
    if len(ids) > 1 and ids[0] == 0 and all(each.get("category_id") != 0 for each in annotations):
        return ids[1:]
    return ids
