"""COCO annotations reduced to the fields that scoring needs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from maskrcnn_scratch.data.coco_fields import parse_area, parse_bbox, parse_crowd, parse_id
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.plain_values import shown


def ground_truth(
    content: Mapping[str, Any], name: str, iou_type: Literal["bbox", "segm"]
) -> dict[str, Any]:
    """The images, annotations and categories of ``content``, with plain numbers.

    Segmentations are included only for ``segm``. An object without one is then a crowd region of
    its box: detections inside it count neither as hits nor as misses. Names of several categories
    get the category id, so that they differ.

    Args:
        content: what ``read_coco_json`` returned.
        name: the file, for messages.

    Raises:
        ValueError: there is no image, or a field or mask is malformed, naming file and entry.
    """
    if not content["images"]:
        raise ValueError(f"{name}: not COCO annotations, there is no image in it")
    counts = Counter(str(category["name"]) for category in content["categories"])
    found: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    sizes: dict[int, tuple[int, int]] = {}  # (height, width) by image id
    for key, kind, read in (
        ("images", "image id", _image),
        ("categories", "category id", lambda entry: _category(entry, counts)),
        ("annotations", "annotation", lambda entry: _annotation(entry, iou_type, sizes)),
    ):
        for entry in content[key]:
            try:
                found[key].append(read(entry))
                if key == "images":
                    image = found[key][-1]
                    sizes[image["id"]] = image["height"], image["width"]
            except KeyError as error:
                raise ValueError(f"{name}: {kind} {entry.get('id')}: no {error}") from None
            except (ValueError, TypeError) as error:
                id = shown(entry.get("id"))
                raise ValueError(f"{name}: {kind} {id}: {shown(error, 200)}") from None
    _warn_of_nothing(content["annotations"], found["annotations"], name)
    return found


def _warn_of_nothing(
    given: Sequence[Mapping[str, Any]], read: Sequence[Mapping[str, Any]], name: str
) -> None:
    """Warns if the score will be empty or 0 for a reason that the annotations tell."""
    reason = None
    if not given:
        reason = "there are no objects in it"
    elif all(annotation.get("iscrowd") for annotation in given):
        reason = (
            "iscrowd is 1 throughout, and crowd regions are not scored: for single objects use "
            "--crowds-as-objects"
        )
    elif all(annotation["iscrowd"] for annotation in read):
        reason = "no object has a mask, so masks are not scored"
    elif all(max(annotation.get("bbox") or [2]) <= 1 for annotation in read):
        reason = "coordinates are in 0-1, which are not pixels"
    if reason is not None:
        warnings.warn(f"{name}: {reason}", stacklevel=4)


def _image(entry: Mapping[str, Any]) -> dict[str, Any]:
    sides = {side: parse_id(entry[side]) for side in ("height", "width")}
    return {"id": parse_id(entry["id"]), "file_name": str(entry.get("file_name", "")), **sides}


def _category(entry: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    id, name = parse_id(entry["id"]), entry["name"]
    return {"id": id, "name": name if counts[name] == 1 else f"{name} (id {id})"}


def _annotation(
    entry: Mapping[str, Any], iou_type: str, sizes: Mapping[int, tuple[int, int]]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": parse_id(entry["id"]),
        "image_id": parse_id(entry["image_id"]),
        "category_id": parse_id(entry["category_id"]),
        "iscrowd": int(parse_crowd(entry.get("iscrowd"))),
    }
    if entry.get("ignore"):
        found["ignore"] = 1
    if iou_type == "bbox" or "bbox" in entry:
        found["bbox"] = list(parse_bbox(entry["bbox"]))
        found["area"] = found["bbox"][2] * found["bbox"][3]
    if entry.get("area") is not None:
        found["area"] = parse_area(entry["area"])
    if iou_type == "segm":
        segmentation = entry["segmentation"].unpack() if "segmentation" in entry else None
        if not segmentation:
            x, y, width, height = found["bbox"]
            segmentation = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            found["iscrowd"] = 1
        size = sizes.get(found["image_id"])
        # An annotation of an image that is not listed is never scored.
        found["segmentation"] = rle.from_segmentation(segmentation, size) if size else []
    return found
