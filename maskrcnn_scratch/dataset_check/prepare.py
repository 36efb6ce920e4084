"""Annotations for training and evaluation: read from any format, checked, without bad entries."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_scratch.data.convert import plain_content
from maskrcnn_scratch.data.formats import read_dataset
from maskrcnn_scratch.dataset_check.checks import ENTRIES, check_content, well_formed
from maskrcnn_scratch.dataset_check.model_fit import Geometry
from maskrcnn_scratch.dataset_check.report import TURNED, Problem, Report, turned_text
from maskrcnn_scratch.files import write_json


class BadDatasetError(ValueError):
    """Images or annotations that cannot be used. ``problems`` has all of them."""

    def __init__(self, message: str, problems: list[Problem]) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class Prepared:
    """A data set that is ready for ``CocoDataset``."""

    annotation_file: Path
    """COCO annotations."""
    image_folder: Path
    report: Report
    """What was found before entries were skipped."""


def prepare(
    source: Path,
    images: Path | None,
    copy: Path,
    *,
    skip_bad: bool = False,
    decode_images: bool = False,
    geometry: Geometry | None = None,
    **options: Any,
) -> Prepared:
    """Reads and checks a data set.

    A COCO file without errors is used where it is. Otherwise the annotations are written to
    ``copy``, in COCO format.

    Args:
        source: annotation file or folder, of any of ``data.formats.FORMATS``.
        images: folder of the images; by default it is searched near the annotations.
        copy: file for annotations that were converted, or of which some were skipped.
        skip_bad: skip images and annotations with errors, with a warning that counts them.
        decode_images: read the pixels of all images, not just their headers.
        geometry: sizes in the model, for the report.
        **options: of ``check_content``, such as ``allow_outside``.

    Raises:
        BadDatasetError: an image or annotation has an error, and ``skip_bad`` is false; or no image
            or annotation is left.
        FileNotFoundError, ValueError: the source cannot be read; the message names it.
    """
    content, folder, coco_file = read_dataset(source)
    folder = images or folder
    report = check_content(
        content, source, folder, geometry, decode_images=decode_images, **options
    )
    _warn(report)
    bad = report.blocking()
    if bad and not skip_bad:
        raise BadDatasetError(
            f"{source}: {len(bad)} errors in images or annotations ({_kinds(bad)}): correct them, "
            "or skip these entries with --skip-bad",
            bad,
        )
    if bad:
        kept = without(content, bad)
        if not (kept["images"] and kept["annotations"]):
            raise BadDatasetError(f"{source}: nothing is left without errors ({_kinds(bad)})", bad)
        counts = [
            f"{len(content[key]) - len(kept[key])} of {len(content[key])} {key}"
            for key in ("images", "annotations")
        ]
        warnings.warn(f"{source}: skipped {' and '.join(counts)} ({_kinds(bad)})", stacklevel=2)
        content = kept
    if bad or coco_file is None:
        write_json(copy, plain_content(content))
        coco_file = copy
    return Prepared(coco_file, folder, report)


def _warn(report: Report) -> None:
    """Warns of what is no error of an entry, and makes a run useless all the same."""
    source = report.annotation_file
    turned = [problem.image for problem in report.problems if problem.kind == TURNED]
    if turned:
        warnings.warn(turned_text(source, turned), stacklevel=3)
    if report.statistics["annotations"] == 0:
        warnings.warn(f"{source}: there are no objects in it", stacklevel=3)


def without(content: Mapping[str, Any], bad: Sequence[Problem]) -> dict[str, Any]:
    """The content without the images and annotations of these problems.

    Annotations of a skipped image are skipped too.
    """
    kept: dict[str, Any] = {key: well_formed(content[key], kind, []) for key, kind in ENTRIES}
    files = {problem.image for problem in bad if problem.annotation_id is None}
    ids = {problem.annotation_id for problem in bad}
    kept["images"] = [image for image in kept["images"] if image["file_name"] not in files]
    images = {image["id"] for image in kept["images"]}
    kept["annotations"] = [
        annotation
        for annotation in kept["annotations"]
        if annotation["id"] not in ids and annotation["image_id"] in images
    ]
    return kept


def _kinds(problems: Sequence[Problem]) -> str:
    counts = Counter(problem.kind for problem in problems)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
