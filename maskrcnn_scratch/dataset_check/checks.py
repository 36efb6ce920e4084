"""The dataset check: finds what would break or mislead training, in a COCO data set.

Shapes: G objects of all images of the data set together.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from maskrcnn_scratch.data.coco_fields import (
    has_type,
    parse_area,
    parse_bbox,
    parse_crowd,
    parse_file_name,
)
from maskrcnn_scratch.data.coco_json import read_coco_json
from maskrcnn_scratch.data.image import image_size, read_image
from maskrcnn_scratch.data.image_folder import locate_image
from maskrcnn_scratch.dataset_check.model_fit import Geometry, ModelFit, fit_model, num_anchors
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.plain_values import shown

Entry = dict[str, Any]
Severity = Literal["error", "warning"]
Finding = tuple[Severity, str, str]  # severity, kind, detail

# Fields that an entry must have for the other checks.
IMAGE_FIELDS = {"id": int, "file_name": str, "height": int, "width": int}
ANNOTATION_FIELDS = {"id": int, "image_id": int, "category_id": int}
CATEGORY_FIELDS = {"id": int, "name": str}
IOU_BYTES = 4  # float32


@dataclass(frozen=True)
class Problem:
    """One problem of one entry, image file or annotation."""

    severity: Severity
    kind: str
    """What is wrong; the same text for all problems of a kind."""
    detail: str = ""
    image: str | None = None
    """File name of the image."""
    annotation_id: int | None = None


@dataclass
class Report:
    """Everything found in one annotation file."""

    annotation_file: str
    image_folder: str
    problems: list[Problem] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    fit: ModelFit | None = None
    """None if no object has a usable box."""

    def of(self, severity: Severity) -> list[Problem]:
        """The problems of this severity."""
        return [problem for problem in self.problems if problem.severity == severity]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self)


def check_dataset(
    annotation_file: str | PathLike[str],
    image_folder: str | PathLike[str],
    geometry: Geometry | None = None,
    decode_images: bool = True,
) -> Report:
    """Checks every entry, image file and mask of a COCO data set.

    Errors make training or evaluation fail or ignore objects. Warnings are probable mistakes.
    ``decode_images=False`` reads only the headers of image files, which misses truncated ones.
    Nothing in the files raises an error: a file that is not COCO annotations is an error in the
    report.
    """
    report = Report(str(annotation_file), str(image_folder))
    problems = report.problems
    try:
        with warnings.catch_warnings(record=True) as converted:
            warnings.simplefilter("always")
            content = read_coco_json(annotation_file)
    except (OSError, ValueError) as error:
        problems.append(Problem("error", "not COCO annotations", str(error)))
        return report
    for warning in converted:
        detail = str(warning.message).removeprefix(f"{annotation_file}: ")
        problems.append(Problem("warning", "values of an unusual type", detail))
    categories = _well_formed(content["categories"], "category", CATEGORY_FIELDS, problems)
    images = _well_formed(content["images"], "image", IMAGE_FIELDS, problems)
    annotations = _well_formed(content["annotations"], "annotation", ANNOTATION_FIELDS, problems)

    by_id = {image["id"]: image for image in images}
    problems += _check_categories(categories, annotations)
    problems += _check_images(images, Path(image_folder), decode_images)
    problems += _check_annotations(annotations, by_id, {c["id"] for c in categories})
    report.statistics = _statistics(images, annotations, categories)
    objects = [a for a in annotations if not a.get("iscrowd") and _is_usable(a, by_id)]
    if objects:
        _check_fit(report, objects, by_id, geometry or Geometry())
    return report


def _well_formed(
    entries: list[Entry], what: str, fields: Mapping[str, type], problems: list[Problem]
) -> list[Entry]:
    """The entries with all ``fields``. Each of the others is added to ``problems``."""
    good = []
    for entry in entries:
        bad = [name for name, kind in fields.items() if not has_type(entry.get(name), kind)]
        bad += [
            name
            for name in ("height", "width")
            if name in fields and name not in bad and entry[name] < 1
        ]
        if bad:
            values = ", ".join(f"{name} is {shown(repr(entry.get(name)))}" for name in bad)
            where = f"{what} id {shown(repr(entry.get('id')))}: {values}"
            problems.append(Problem("error", f"{what} entry incomplete", where))
        else:
            good.append(entry)
    return good


def _check_categories(categories: list[Entry], annotations: list[Entry]) -> Iterator[Problem]:
    if not categories:
        yield Problem("error", "no categories")
    for name in CATEGORY_FIELDS:
        for value in _repeated(category[name] for category in categories):
            yield Problem("error", f"category {name} given twice", repr(value))
    used = {annotation["category_id"] for annotation in annotations}
    with_objects = {a["category_id"] for a in annotations if not a.get("iscrowd")}
    for category in categories:
        shown = f"{category['name']!r} (id {category['id']})"
        if category["id"] == 0:
            detail = f"{shown}: code that uses category ids as labels takes 0 as background"
            yield Problem("warning", "category id 0", detail)
        if category["name"].lower() == "background":
            yield Problem("warning", "background as a category", shown)
        if category["id"] not in used:
            yield Problem("warning", "category without annotations", shown)
        elif category["id"] not in with_objects:
            detail = f"{shown}: iscrowd is 1 throughout; for single objects use --crowds-as-objects"
            yield Problem("error", "category with crowds only", detail)


def _check_images(images: list[Entry], folder: Path, decode: bool) -> Iterator[Problem]:
    if not images:
        yield Problem("error", "no images")
    for id in _repeated(image["id"] for image in images):
        yield Problem("error", "image id given twice", str(id))
    for name in _repeated(image["file_name"] for image in images):
        yield Problem("warning", "image file given twice", image=name)
    for image in images:
        try:
            path = locate_image(folder, parse_file_name(image["file_name"]))
        except ValueError as error:
            kind = "image file outside of the folder, or no file name"
            yield Problem("error", kind, f"image id {image['id']}: {error}")
            continue
        for severity, kind, detail in _check_image_file(path, image, decode):
            yield Problem(severity, kind, detail, image["file_name"])


def _check_image_file(path: Path, image: Entry, decode: bool) -> Iterator[Finding]:
    try:
        size = tuple(read_image(path).shape[1:]) if decode else image_size(path)
    except FileNotFoundError:
        yield "error", "image file missing", f"image id {image['id']}: {path}"
        return
    except ValueError as error:
        yield "error", "image file unreadable", str(error)
        return
    given = image["height"], image["width"]
    if size != given:
        detail = f"file {size[0]} x {size[1]}, annotations {given[0]} x {given[1]} (height x width)"
        if image_size(path, apply_exif=False) == given:
            detail += "; they agree without the file's EXIF orientation"
        yield "error", "image size differs", detail


def _check_annotations(
    annotations: list[Entry], images: dict[int, Entry], category_ids: set[int]
) -> Iterator[Problem]:
    if not annotations:
        yield Problem("warning", "no annotations")
    for id in _repeated(annotation["id"] for annotation in annotations):
        yield Problem("error", "annotation id given twice", annotation_id=id)
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
    try:
        box = parse_bbox(annotation.get("bbox"))
        yield from _check_box(*box, size)
    except ValueError as error:
        yield "error", "bad box", str(error)
    if "segmentation" in annotation:
        yield from _check_mask(annotation["segmentation"].unpack(), box, size)
    else:
        yield "error", "bad mask", "no segmentation"


def _check_box(
    x: float, y: float, width: float, height: float, size: tuple[int, int]
) -> Iterator[Finding]:
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
        both = _xyxy([box, rle.bounding_box(mask)])
        iou = float(box_iou(both[:1], both[1:]))
        # For an object of a few pixels, rounding to whole pixels can already halve the IoU.
        if iou < 0.5 and (both[0] - both[1]).abs().max() > 2:
            yield "warning", "box and mask disagree", f"IoU {iou:.2f} of the box and the mask's box"


def _is_usable(annotation: Entry, images: dict[int, Entry]) -> bool:
    """Whether the annotation has a valid box inside a known image."""
    image = images.get(annotation["image_id"])
    try:
        box = parse_bbox(annotation.get("bbox"))
    except ValueError:
        return False
    return image is not None and not any(
        severity == "error" for severity, *_ in _check_box(*box, (image["height"], image["width"]))
    )


def _check_fit(
    report: Report, objects: list[Entry], images: dict[int, Entry], geometry: Geometry
) -> None:
    """Adds the fit of the objects to the report, and a warning for each that no anchor matches."""
    owners = [images[annotation["image_id"]] for annotation in objects]  # [G]
    resized = {id: geometry.resized(i["height"], i["width"]) for id, i in images.items()}
    originals = torch.tensor([(image["height"], image["width"]) for image in owners])  # [G, 2]
    sizes = torch.tensor([resized[image["id"]] for image in owners])  # [G, 2]
    scale = (sizes / originals).flip(1).repeat(1, 2)  # [G, 4]
    boxes = _xyxy([parse_bbox(annotation["bbox"]) for annotation in objects]) * scale
    report.fit = fit_model(boxes, sizes, geometry)

    for index in report.fit.unmatched:
        width, height = (boxes[index, 2:] - boxes[index, :2]).tolist()
        detail = (
            f"{height:.0f} x {width:.0f} (height x width) after the image is resized to "
            f"{sizes[index, 0]} x {sizes[index, 1]}"
        )
        kind = "no anchor matches the object (best IoU below 0.3)"
        name, id = owners[index]["file_name"], objects[index]["id"]
        report.problems.append(Problem("warning", kind, detail, name, id))

    per_image = Counter(image["id"] for image in owners)
    pairs = {id: count * num_anchors(resized[id], geometry) for id, count in per_image.items()}
    busiest = max(pairs, key=lambda id: pairs[id])
    report.statistics["matching"] = {
        "image": images[busiest]["file_name"],
        "objects": per_image[busiest],
        "iou_matrix_megabytes": pairs[busiest] * IOU_BYTES / 1e6,
    }


def _statistics(
    images: list[Entry], annotations: list[Entry], categories: list[Entry]
) -> dict[str, Any]:
    names = {category["id"]: category["name"] for category in categories}
    per_image = Counter(annotation["image_id"] for annotation in annotations)
    per_category = Counter(names.get(a["category_id"], "unknown") for a in annotations)
    return {
        "images": len(images),
        "images_without_annotations": sum(image["id"] not in per_image for image in images),
        "annotations": len(annotations),
        "crowds": sum(bool(annotation.get("iscrowd")) for annotation in annotations),
        "most_annotations_per_image": max(per_image.values(), default=0),
        "annotations_per_category": dict(per_category.most_common()),
    }


def _repeated(values: Iterator[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _xyxy(boxes: list[Any]) -> Tensor:
    """Boxes (x, y, width, height) as a tensor [G, 4] of (x1, y1, x2, y2)."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners
