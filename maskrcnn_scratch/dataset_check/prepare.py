"""The annotations of a training run: read from any format, checked, and without bad entries."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_scratch.data.coco_json import coco_content, read_coco_json
from maskrcnn_scratch.data.formats import read_dataset
from maskrcnn_scratch.data.image_folder import find_image_folder
from maskrcnn_scratch.dataset_check.checks import ENTRIES, check_content, well_formed
from maskrcnn_scratch.dataset_check.model_fit import Geometry
from maskrcnn_scratch.dataset_check.report import Problem, Report
from maskrcnn_scratch.files import write_json


class BadDatasetError(ValueError):
    """Images or annotations that training cannot use. ``problems`` has all of them."""

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
    allow_outside: bool = False,
    geometry: Geometry | None = None,
) -> Prepared:
    """Reads and checks a data set.

    A COCO file without errors is used where it is. Otherwise the annotations are written to
    ``copy``, in COCO format.

    Args:
        source: annotation file or folder, of any of ``data.formats.FORMATS``.
        images: folder of the images; by default it is searched near the annotations.
        copy: file for annotations that were converted, or of which some were skipped.
        skip_bad: skip images and annotations with errors, with a warning that counts them.
        allow_outside: read images whose ``file_name`` leads out of their folder.
        geometry: sizes in the model, for the report.

    Raises:
        BadDatasetError: an image or annotation has an error, and ``skip_bad`` is false; or no image
            or annotation is left.
        FileNotFoundError, ValueError: the source cannot be read; the message names it.
    """
    content, folder, is_coco = _read(source)
    folder = images or folder
    report = check_content(content, source, folder, geometry, False, allow_outside)
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
    if bad or not is_coco:
        write_json(copy, {key: _unpacked(content[key]) for key, _ in ENTRIES})
    return Prepared(copy if bad or not is_coco else source, folder, report)


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


def _read(source: Path) -> tuple[dict[str, Any], Path, bool]:
    """The content with packed segmentations, the folder of the images, and whether it is COCO."""
    if source.is_file() and source.suffix.lower() == ".json":
        try:
            return read_coco_json(source), find_image_folder(source), True
        except ValueError:
            pass  # another format; or the message below says what is wrong
    content, folder = read_dataset(source)
    return coco_content(content, str(source)), folder, False


def _unpacked(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**entry, "segmentation": entry["segmentation"].unpack()}
        if "segmentation" in entry
        else entry
        for entry in entries
    ]


def _kinds(problems: Sequence[Problem]) -> str:
    counts = Counter(problem.kind for problem in problems)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
