"""Writing a data set in COCO format: images linked or copied, one annotation file per subset."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_scratch.data.coco_fields import parse_file_name
from maskrcnn_scratch.data.coco_json import NUMBERS
from maskrcnn_scratch.data.image_folder import locate_image, name_inside
from maskrcnn_scratch.files import write_json

SUBSETS = ("train", "val", "test")


def split_content(
    content: Mapping[str, Any], fractions: Sequence[float], seed: int
) -> dict[str, dict[str, Any]]:
    """Divides the images of COCO annotations at random; every subset keeps all categories.

    Args:
        fractions: of the images, for ``SUBSETS`` in this order; none for one subset "all".
    """
    images = list(content["images"])
    if not fractions:
        return {"all": dict(content)}
    random.Random(seed).shuffle(images)
    borders = [round(len(images) * sum(fractions[: n + 1])) for n in range(len(fractions))]
    subsets = {}
    for name, first, last in zip(SUBSETS, [0, *borders], borders, strict=False):
        chosen = sorted(images[first:last], key=lambda image: image["id"])
        ids = {image["id"] for image in chosen}
        kept = [one for one in content["annotations"] if one["image_id"] in ids]
        subsets[name] = {
            "images": chosen,
            "annotations": kept,
            "categories": content["categories"],
        }
    return subsets


def write_dataset(
    subsets: Mapping[str, Mapping[str, Any]],
    images: Path,
    destination: Path,
    allow_outside: bool = False,
) -> list[Path]:
    """Writes ``images/`` and ``annotations/instances_NAME.json``; the annotation files come last.

    Names of images become relative paths with slashes. All images are looked for before anything
    is written.

    Args:
        subsets: content of ``read_coco_json`` by name.
        images: folder of the images.
        allow_outside: read images whose ``file_name`` leads out of ``images``.

    Raises:
        FileExistsError: the destination is not empty.
        FileNotFoundError: images are missing, naming the first.
        ValueError: an image has no name, or one that leads out of the folder.
        OSError: a file could not be written.
    """
    if destination.exists() and any(destination.iterdir()):
        raise FileExistsError(f"{destination}: not empty; give a new folder")
    entries = [image for content in subsets.values() for image in content["images"]]
    files = [_find(images, image, allow_outside) for image in entries]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: no such image ({len(missing)} of {len(files)} are missing)"
        )
    for file, image in zip(files, entries, strict=True):
        target = destination / "images" / name_inside(image["file_name"])
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(file, target)
    written = []
    for name, content in subsets.items():
        plain = plain_content(content)
        for image in plain["images"]:
            image["file_name"] = name_inside(image["file_name"])
        written.append(destination / "annotations" / f"instances_{name}.json")
        write_json(written[-1], plain)
    return written


def plain_content(content: Mapping[str, Any]) -> dict[str, Any]:
    """Images, annotations and categories of ``read_coco_json`` as values that JSON can hold.

    Other tools read the result: ``iscrowd`` is 0 or 1, and other keys of the file are dropped.
    """
    plain = {key: [dict(entry) for entry in content[key]] for key in NUMBERS}
    for annotation in plain["annotations"]:
        if "segmentation" in annotation:
            annotation["segmentation"] = annotation["segmentation"].unpack()
        annotation["iscrowd"] = annotation.get("iscrowd") or 0
    return plain


def _find(images: Path, image: Mapping[str, Any], allow_outside: bool) -> Path:
    try:
        return locate_image(images, parse_file_name(image.get("file_name")), allow_outside)
    except ValueError as error:
        raise ValueError(f"{images}: image id {image.get('id')}: {error}") from None


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        raise FileExistsError(f"{target}: two images of this name") from None
    except OSError:
        shutil.copyfile(source, target)
