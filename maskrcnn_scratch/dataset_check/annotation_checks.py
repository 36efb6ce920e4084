"""Checks of annotations: category, image, box and mask of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.data.coco_fields import parse_area, parse_bbox, parse_crowd
from maskrcnn_scratch.dataset_check.report import ID_GIVEN_TWICE, Problem, Severity
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.ops.boxes import box_iou

Entry = dict[str, Any]
Finding = tuple[Severity, str, str]  # severity, kind, detail
MIN_SIDE = 8  # pixels; in smaller images coordinates up to 1 may be pixels


def check_annotations(
    annotations: list[Entry], images: dict[int, Entry], category_ids: set[int]
) -> Iterator[Problem]:
    """The problems of all annotations.

    Args:
        images: image entries by id.
        category_ids: ids of the categories of the file.
    """
    if not annotations:
        yield Problem("warning", "no annotations")
    for id in repeated(annotation["id"] for annotation in annotations):
        yield Problem("error", ID_GIVEN_TWICE, annotation_id=id)
    seen: dict[tuple[Any, ...], int] = {}
    for annotation in annotations:
        image = images.get(annotation["image_id"])
        name = image["file_name"] if image else None
        for severity, kind, detail in _check_annotation(annotation, image, category_ids):
            yield Problem(severity, kind, detail, name, annotation["id"])
        key = (annotation["image_id"], annotation["category_id"], repr(annotation.get("bbox")))
        first = seen.setdefault(key, annotation["id"])
        if first != annotation["id"]:
            detail = f"same box and category as annotation {first}"
            yield Problem("warning", "object annotated twice", detail, name, annotation["id"])


def _check_annotation(
    annotation: Entry, image: Entry | None, category_ids: set[int]
) -> Iterator[Finding]:
    category = annotation["category_id"]
    if category not in category_ids:
        hint = "; 0 is the background, objects need another id" if category == 0 else ""
        yield "error", "unknown category", f"id {category}{hint}"
    for name, parse in (("area", parse_area), ("iscrowd", parse_crowd)):
        if name not in annotation:
            yield "warning", f"no {name}", "COCO's evaluation uses it"
            continue
        try:
            parse(annotation[name])
        except ValueError as error:
            yield "error", f"bad {name}", str(error)
    if image is None:
        yield "error", "unknown image", f"id {annotation['image_id']}"
        return
    size = image["height"], image["width"]
    box = None
    segmentation = annotation["segmentation"].unpack() if "segmentation" in annotation else None
    try:
        box = parse_bbox(annotation.get("bbox"))
    except ValueError as error:
        yield "error", "bad box", str(error)
    if box and _are_fractions(box, segmentation, size):
        yield "error", "coordinates in 0-1", f"x {box[0]:g}, y {box[1]:g} are not pixels"
        return
    if box:
        yield from check_box(*box, size)
    if segmentation:
        yield from _check_mask(segmentation, box, size)
    else:
        yield "warning", "object without mask", "it trains the box branch, not the mask branch"


def _are_fractions(box: tuple[float, ...], segmentation: Any, size: tuple[int, int]) -> bool:
    """Whether box and polygons are given as fractions of the image instead of in pixels."""
    if min(size) < MIN_SIDE or max(box) > 1:
        return False
    polygons = segmentation if isinstance(segmentation, list) else []
    values = [value for polygon in polygons if isinstance(polygon, list) for value in polygon]
    return all(isinstance(value, (int, float)) and value <= 1 for value in values) and (
        bool(values) or any(value % 1 for value in box)
    )


def check_box(
    x: float, y: float, width: float, height: float, size: tuple[int, int]
) -> Iterator[Finding]:
    """The problems of a box in an image of ``size`` (height, width)."""
    shown = f"x {x:g}, y {y:g}, width {width:g}, height {height:g} in {size[0]} x {size[1]}"
    if width <= 0 or height <= 0:
        yield "error", "degenerate box", shown
    elif x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        yield "error", "box outside its image", shown
    elif x < -1 or y < -1 or x + width > size[1] + 1 or y + height > size[0] + 1:
        yield "warning", "box exceeds its image", shown
    elif width < 1 or height < 1:
        yield "warning", "box smaller than one pixel", shown


def _check_mask(
    segmentation: Any, box: tuple[float, ...] | None, size: tuple[int, int]
) -> Iterator[Finding]:
    try:
        mask = rle.from_segmentation(segmentation, size)
    except (ValueError, TypeError) as error:
        yield "error", "bad mask", str(error)
        return
    if not rle.area(mask):
        yield "error", "bad mask", "no pixel of the image is inside"
    elif box and box[2] > 0 and box[3] > 0:
        both = xyxy([box, rle.bounding_box(mask)])
        iou = float(box_iou(both[:1], both[1:]))
        # For an object of a few pixels, rounding to whole pixels can already halve the IoU.
        if iou < 0.5 and (both[0] - both[1]).abs().max() > 2:
            yield "warning", "box and mask disagree", f"IoU {iou:.2f} of the box and the mask's box"


def repeated(values: Iterable[Any]) -> list[Any]:
    """The values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def xyxy(boxes: list[Any]) -> Tensor:
    """Boxes (x, y, width, height) as a tensor ``[G, 4]`` of (x1, y1, x2, y2)."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners
