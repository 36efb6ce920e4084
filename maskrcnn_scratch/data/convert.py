"""Writing a data set in COCO format: images linked or copied, one annotation file per subset."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    subsets: Mapping[str, Mapping[str, Any]], images: Path, destination: Path
) -> list[Path]:
    """Writes ``images/`` and ``annotations/instances_NAME.json``; the annotation files come last.

    Raises:
        FileExistsError: the destination is not empty.
        FileNotFoundError: an image is missing, naming it.
        OSError: a file could not be written.
    """
    if destination.exists() and any(destination.iterdir()):
        raise FileExistsError(f"{destination}: not empty; give a new folder")
    for content in subsets.values():
        for image in content["images"]:
            target = destination / "images" / image["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(images / image["file_name"], target)
    files = []
    for name, content in subsets.items():
        files.append(destination / "annotations" / f"instances_{name}.json")
        write_json(files[-1], content)
    return files


def _link_or_copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such image")
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        raise FileExistsError(f"{target}: two images of this name") from None
    except OSError:
        shutil.copyfile(source, target)
