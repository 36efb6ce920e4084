"""``maskrcnn data check``: what is wrong with a data set, and how it fits the model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from maskrcnn_scratch.cli import UsageError
from maskrcnn_scratch.data.coco_json import find_image_folder
from maskrcnn_scratch.dataset_check.checks import Problem, Report, check_dataset
from maskrcnn_scratch.dataset_check.model_fit import Geometry, ModelFit
from maskrcnn_scratch.files import write_json

BAR = 30  # characters of a full bar
DEFAULT_GEOMETRY = Geometry()
WORTHWHILE = 0.02  # what other anchors must bring in IoU to be suggested


def check(
    paths: tyro.conf.Positional[tuple[Path, ...]],
    images: Path | None = None,
    geometry: Annotated[Geometry, tyro.conf.arg(name="")] = DEFAULT_GEOMETRY,
    decode: bool = True,
    show: int = 5,
    json: Path | None = None,
) -> int:
    """Look for what would break or mislead training, and show how the objects fit the model.

    Exit status 1 if there is an error, 0 if there are warnings at most.

    Args:
        paths: COCO annotation files, or folders that hold them.
        images: Folder of the images; by default it is looked for around the annotation file.
        geometry: The model to fit.
        decode: Decode every image, which finds truncated ones.
        show: Examples of each kind of problem; 0 shows all.
        json: Write everything found to this file.
    """
    if not paths:
        raise UsageError("give at least one COCO annotation file, or a folder that holds some")
    reports = [
        check_dataset(file, images or find_image_folder(file), geometry, decode)
        for path in paths
        for file in find_annotation_files(path)
    ]
    for report in reports:
        print("\n".join(format_report(report, show or sys.maxsize)))
    if json is not None:
        write_json(json, [report.to_json() for report in reports])
    return int(any(report.of("error") for report in reports))


def find_annotation_files(path: Path) -> list[Path]:
    """The file itself; of a folder the ``instances*.json`` in it and its ``annotations``."""
    if not path.is_dir():
        return [path]
    folders = (path, path / "annotations")
    files = [file for folder in folders for file in sorted(folder.glob("instances*.json"))]
    if not files:
        raise FileNotFoundError(f"{path}: no instances*.json in it or in its annotations/")
    return files


def format_report(report: Report, show: int) -> Iterator[str]:
    """The report as lines of text, with up to ``show`` examples of each kind of problem."""
    yield f"{report.annotation_file}  (images: {report.image_folder})"
    statistics = report.statistics
    if statistics:
        yield (
            f"  {statistics['images']} images, {statistics['images_without_annotations']} of them "
            f"without annotations; {statistics['annotations']} annotations, "
            f"{statistics['crowds']} of them crowds, up to "
            f"{statistics['most_annotations_in_an_image']} in an image"
        )
        counts = list(statistics["annotations_per_category"].items())
        shown = ", ".join(f"{name} {count}" for name, count in counts[:8])
        yield f"  annotated categories ({len(counts)}): {shown}{', ...' * (len(counts) > 8)}"
    for severity in ("error", "warning"):
        yield from _format_problems(report.of(severity), severity, show)
    if report.fit:
        yield from _format_fit(report.fit, statistics)
    errors, warnings = len(report.of("error")), len(report.of("warning"))
    yield f"  {errors} errors, {warnings} warnings"
    yield ""


def _format_problems(problems: list[Problem], severity: str, show: int) -> Iterator[str]:
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    for kind, found in by_kind.items():
        yield f"  {severity}: {kind} ({len(found)})"
        for problem in found[:show]:
            places = [problem.image] if problem.image else []
            if problem.annotation_id is not None:
                places.append(f"annotation {problem.annotation_id}")
            yield "      " + ": ".join(filter(None, [", ".join(places), problem.detail]))
        if len(found) > show:
            yield f"      ... and {len(found) - show} more (--show 0 lists all)"


def _format_fit(fit: ModelFit, statistics: dict[str, Any]) -> Iterator[str]:
    shape = fit.suggested
    yield f"  in the model (shorter side {shape.min_size}, longer at most {shape.max_size} pixels):"
    yield "    IoU of an object's best anchor"
    yield from _bars(fit.anchor_iou_histogram)
    yield "    level that an object is pooled from"
    yield from _bars(fit.roi_levels)
    matching = statistics["matching"]
    yield (
        f"    IoUs of all anchors with the {matching['objects']} objects of {matching['image']}: "
        f"{matching['iou_matrix_megabytes']:.0f} MB where a matcher keeps them (this one does not)"
    )
    best = f"    mean IoU of the best anchors: {fit.mean_anchor_iou:.2f}"
    if fit.suggested_mean_anchor_iou < fit.mean_anchor_iou + WORTHWHILE:
        yield f"{best}; no others that were tried are much better"
    else:
        sizes = " ".join(map(str, shape.anchor_sizes))
        ratios = " ".join(f"{ratio:g}" for ratio in shape.aspect_ratios)
        yield f"{best}; {fit.suggested_mean_anchor_iou:.2f} with these:"
        yield f"      --anchor-sizes {sizes} --aspect-ratios {ratios}"


def _bars(counts: dict[str, int]) -> Iterator[str]:
    total, most = sum(counts.values()), max(*counts.values(), 1)
    for name, count in counts.items():
        bar = "#" * round(BAR * count / most)
        yield f"      {name:8} {bar:{BAR}} {count:7}  {100 * count / total:5.1f}%"
