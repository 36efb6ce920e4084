"""The dataset check: finds what would break or mislead training, in a data set of any format.

Shapes: G objects of all images of the data set together.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from maskrcnn_scratch.data.coco_fields import has_type, parse_bbox, parse_file_name
from maskrcnn_scratch.data.formats import read_dataset
from maskrcnn_scratch.data.image import read_header, read_image_and_header
from maskrcnn_scratch.data.image_folder import locate_image
from maskrcnn_scratch.dataset_check.annotation_checks import (
    Entry,
    Finding,
    check_annotations,
    check_box,
    repeated,
    xyxy,
)
from maskrcnn_scratch.dataset_check.model_fit import Geometry, fit_model, num_anchors
from maskrcnn_scratch.dataset_check.report import INCOMPLETE, TURNED, Objects, Problem, Report
from maskrcnn_scratch.plain_values import shown

# Fields that an entry must have for the other checks.
FIELDS: dict[str, dict[str, type]] = {
    "image": {"id": int, "file_name": str, "height": int, "width": int},
    "annotation": {"id": int, "image_id": int, "category_id": int},
    "category": {"id": int, "name": str},
}
# Key of COCO's files, and what an entry is called; in the order in which problems are reported.
ENTRIES = (("categories", "category"), ("images", "image"), ("annotations", "annotation"))
IOU_BYTES = 4  # float32

MIN_SIDE, MAX_SIDE = 1e-3, 1e6  # pixels; in the fit of other boxes float32 has no numbers left


def check_dataset(
    source: str | PathLike[str],
    image_folder: str | PathLike[str] | None = None,
    geometry: Geometry | None = None,
    **options: Any,
) -> Report:
    """Checks every entry, image file and mask of a data set.

    Errors make training or evaluation fail or ignore objects. Warnings are probable mistakes.
    Nothing in the files raises an error: a source that cannot be read is an error in the report.

    Args:
        source: annotation file or folder, of any of ``data.formats.FORMATS``.
        image_folder: by default it is searched near the annotations.
        **options: of ``check_content``.
    """
    try:
        with warnings.catch_warnings(record=True) as converted:
            warnings.simplefilter("always")
            content, folder, _ = read_dataset(Path(source))
    except (OSError, ValueError) as error:
        unread = Problem("error", "annotations that cannot be read", str(error))
        return Report(str(source), str(image_folder or ""), [unread])
    report = check_content(content, source, image_folder or folder, geometry, **options)
    for warning in converted:
        detail = str(warning.message).removeprefix(f"{source}: ")
        report.problems.insert(0, Problem("warning", "values of an unusual type", detail))
    return report


def check_content(
    content: Mapping[str, Any],
    name: str | PathLike[str],
    image_folder: str | PathLike[str],
    geometry: Geometry | None = None,
    *,
    decode_images: bool = True,
    apply_exif: bool = True,
    allow_outside: bool = False,
    crowds_as_objects: bool = False,
) -> Report:
    """As ``check_dataset``, for what ``read_coco_json`` or ``coco_content`` returned.

    Args:
        name: the source of the annotations, for the report.
        decode_images: whether to decode every image. Headers alone do not show truncated files.
        apply_exif: whether images are read upright, by their EXIF orientation.
        allow_outside: images whose ``file_name`` leads out of the folder are no error.
        crowds_as_objects: crowd regions are objects, whatever their ``iscrowd``.
    """
    if crowds_as_objects:
        annotations = [{**annotation, "iscrowd": 0} for annotation in content["annotations"]]
        content = {**content, "annotations": annotations}
    report = Report(str(name), str(image_folder))
    problems = report.problems
    categories, images, annotations = (
        well_formed(content[key], kind, problems) for key, kind in ENTRIES
    )
    by_id = {image["id"]: image for image in images}
    problems += _check_categories(categories, annotations)
    problems += _check_images(images, Path(image_folder), decode_images, apply_exif, allow_outside)
    problems += check_annotations(annotations, by_id, {c["id"] for c in categories})
    report.statistics = _statistics(images, annotations, categories)
    usable = [a for a in annotations if not a.get("iscrowd") and _is_usable(a, by_id)]
    report.objects = _objects(usable, by_id, categories)
    if usable:
        _check_fit(report, usable, by_id, geometry or Geometry())
    return report


def well_formed(entries: list[Entry], what: str, problems: list[Problem]) -> list[Entry]:
    """The entries with all ``FIELDS`` of their kind. Each of the others is added to ``problems``.

    Args:
        what: "category", "image" or "annotation".
    """
    good, fields = [], FIELDS[what]
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
            problems.append(Problem("error", f"{what} {INCOMPLETE}", where))
        else:
            good.append(entry)
    return good


def _check_categories(categories: list[Entry], annotations: list[Entry]) -> Iterator[Problem]:
    if not categories:
        yield Problem("error", "no categories")
    for name in FIELDS["category"]:
        for value in repeated(category[name] for category in categories):
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


def _check_images(
    images: list[Entry], folder: Path, decode: bool, apply_exif: bool, allow_outside: bool
) -> Iterator[Problem]:
    if not images:
        yield Problem("error", "no images")
    for id in repeated(image["id"] for image in images):
        yield Problem("error", "image id given twice", str(id))
    for name in repeated(image["file_name"] for image in images):
        yield Problem("warning", "image file given twice", image=name)
    for image in images:
        try:
            path = locate_image(folder, parse_file_name(image["file_name"]), allow_outside)
        except ValueError as error:
            kind = "image file outside of the folder, or no file name"
            yield Problem("error", kind, str(error), image["file_name"])
            continue
        for severity, kind, detail in _check_image_file(path, image, decode, apply_exif):
            yield Problem(severity, kind, detail, image["file_name"])


def _check_image_file(
    path: Path, image: Entry, decode: bool, apply_exif: bool
) -> Iterator[Finding]:
    try:
        header = read_image_and_header(path)[1] if decode else read_header(path)
    except FileNotFoundError:
        yield "error", "image file missing", f"image id {image['id']}: {path}"
        return
    except ValueError as error:
        yield "error", "image file unreadable", str(error)
        return
    size, given = header.size_of(apply_exif), (image["height"], image["width"])
    if size != given:
        detail = f"file {size[0]} x {size[1]}, annotations {given[0]} x {given[1]} (height x width)"
        if header.size_of(not apply_exif) == given:
            detail += f"; they agree with {'--no-exif' if apply_exif else '--exif'}"
        yield "error", "image size differs", detail
    elif apply_exif and header.turn_is_uncertain(given):
        yield (
            "warning",
            TURNED,
            f"EXIF orientation {header.orientation}; --no-exif does not turn it",
        )
    if header.pages > 1:
        yield "warning", "several pages", f"only the first of {header.pages} is used"


def _is_usable(annotation: Entry, images: dict[int, Entry]) -> bool:
    """Whether the annotation has a valid box, of a size that anchors can have, in a known image."""
    image = images.get(annotation["image_id"])
    try:
        box = parse_bbox(annotation.get("bbox"))
    except ValueError:
        return False
    sides_are_possible = all(MIN_SIDE <= side <= MAX_SIDE for side in box[2:])
    return (
        image is not None
        and sides_are_possible
        and not any(
            severity == "error"
            for severity, *_ in check_box(*box, (image["height"], image["width"]))
        )
    )


def _objects(usable: list[Entry], images: dict[int, Entry], categories: list[Entry]) -> Objects:
    names = {category["id"]: category["name"] for category in categories}
    owners = [images[annotation["image_id"]] for annotation in usable]  # [G]
    per_image = Counter(image["id"] for image in owners)
    return Objects(
        xyxy([parse_bbox(annotation["bbox"]) for annotation in usable]),
        torch.tensor([(i["height"], i["width"]) for i in owners]).reshape(-1, 2),
        [names.get(annotation["category_id"], "unknown") for annotation in usable],
        [per_image[id] for id in images],
    )


def _check_fit(
    report: Report, objects: list[Entry], images: dict[int, Entry], geometry: Geometry
) -> None:
    """Adds the fit of the objects to the report, and a warning for each that no anchor matches."""
    assert report.objects is not None
    owners = [images[annotation["image_id"]] for annotation in objects]  # [G]
    resized = {id: geometry.resized(i["height"], i["width"]) for id, i in images.items()}
    sizes = torch.tensor([resized[image["id"]] for image in owners])  # [G, 2]
    scale = (sizes / report.objects.image_sizes).flip(1).repeat(1, 2)  # [G, 4]
    boxes = report.objects.boxes * scale
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
