"""``maskrcnn data check``: finds problems of a data set, and shows how it fits the model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from maskrcnn_scratch.cli import UsageError
from maskrcnn_scratch.data.pixel_limit import MAX_PIXELS, pixel_limit
from maskrcnn_scratch.dataset_check.checks import ENTRIES, check_dataset, well_formed
from maskrcnn_scratch.dataset_check.model_fit import Geometry, ModelFit
from maskrcnn_scratch.dataset_check.report import Problem, Report, format_problems
from maskrcnn_scratch.files import write_json

BAR = 30  # characters of a full bar
DEFAULT_GEOMETRY = Geometry()
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
WORTHWHILE = 0.02  # gain of mean IoU from which other anchors are suggested


def check(
    paths: tyro.conf.Positional[tuple[Path, ...]],
    images: Path | None = None,
    geometry: Annotated[Geometry, tyro.conf.arg(name="")] = DEFAULT_GEOMETRY,
    decode: bool = True,
    show: int = 5,
    json: Path | None = None,
    out: Path | None = None,
    crowds_as_objects: Flag = False,
    allow_outside: Flag = False,
    no_exif: Flag = False,
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Check a data set for problems that break or mislead training, and its fit to the model.

    The exit status is 1 if there are errors, and 0 if there are only warnings or no problems.

    Args:
        paths: Annotation files or folders of COCO, labelme, Pascal VOC, YOLO, CVAT, VIA, Label
            Studio, Supervisely, FiftyOne or PNG masks.
        images: Folder of the images; by default it is searched near the annotation file.
        geometry: Sizes in the model.
        decode: Decode every image, which finds truncated files.
        show: Number of examples shown for each kind of problem; 0 shows all.
        json: Write the report to this file.
        out: Folder for labels.png: classes, sizes and positions of the objects, and anchor fit. Of
            several annotation files, each has a folder in it.
        crowds_as_objects: Treat annotations with iscrowd 1 as single objects.
        allow_outside: Read images whose file_name leads out of their folder.
        no_exif: Read images as they are stored, without the rotation of their EXIF orientation.
        max_pixels: Refuse images with more pixels.
    """
    if not paths:
        raise UsageError("give at least one annotation file, or the folder of a data set")
    with pixel_limit(max_pixels):
        reports = [
            check_dataset(
                file,
                images,
                geometry,
                decode_images=decode,
                apply_exif=not no_exif,
                allow_outside=allow_outside,
                crowds_as_objects=crowds_as_objects,
            )
            for path in paths
            for file in find_annotation_files(path)
        ]
    for report in reports:
        print("\n".join(format_report(report, show or sys.maxsize)))
    if json is not None:
        write_json(json, [report.to_json() for report in reports])
    if out is not None:
        draw_labels(reports, out)
    return int(any(report.of("error") for report in reports))


def draw_labels(reports: Sequence[Report], folder: Path) -> None:
    """Writes ``labels.png`` for each report that has objects."""
    from maskrcnn_scratch.pictures.labels import labels_figure
    from maskrcnn_scratch.pictures.save import save_figure

    for report in reports:
        path = folder / (Path(report.annotation_file).stem if len(reports) > 1 else "")
        if report.objects is not None:
            names = list(report.statistics["annotations_per_category"])
            figure = labels_figure(report.objects, names, report.annotation_file, report.fit)
            save_figure(figure, path / "labels.png")
            print(path / "labels.png")


def find_annotation_files(path: Path) -> list[Path]:
    """The path itself, or all ``instances*.json`` of a folder and of its ``annotations``."""
    if not path.is_dir():
        return [path]
    folders = (path, path / "annotations")
    files = [file for folder in folders for file in sorted(folder.glob("instances*.json"))]
    return files or [path]


def format_report(report: Report, show: int) -> Iterator[str]:
    """The report as lines of text, with up to ``show`` examples of each kind of problem."""
    yield f"{report.annotation_file}  (images: {report.image_folder})"
    statistics = report.statistics
    if statistics:
        yield (
            f"  {statistics['images']} images, {statistics['images_without_annotations']} of them "
            f"without annotations; {statistics['annotations']} annotations, "
            f"{statistics['crowds']} of them crowds, at most "
            f"{statistics['most_annotations_per_image']} per image"
        )
        counts = list(statistics["annotations_per_category"].items())
        shown = ", ".join(f"{name} {count}" for name, count in counts[:8])
        yield f"  annotated categories ({len(counts)}): {shown}{', ...' * (len(counts) > 8)}"
    problems = [*report.of("error"), *report.of("warning")]
    for line in format_problems(problems, show):
        yield line + " (--show 0 lists all)" * line.endswith(" more")
    if report.fit:
        yield from _format_fit(report.fit, statistics)
    errors, warnings = len(report.of("error")), len(report.of("warning"))
    yield f"  {errors} errors, {warnings} warnings"
    yield ""


def _format_fit(fit: ModelFit, statistics: dict[str, Any]) -> Iterator[str]:
    shape = fit.suggested
    yield f"  fit to the model (shorter side {shape.min_size}, longer side up to {shape.max_size}):"
    yield "    objects by the IoU of their best anchor"
    yield from _bars(fit.anchor_iou_histogram)
    yield "    objects by the pyramid level that they are pooled from"
    yield from _bars(fit.roi_levels)
    matching = statistics["matching"]
    yield (
        f"    an IoU matrix of all anchors and the {matching['objects']} objects of "
        f"{matching['image']} takes {matching['iou_matrix_megabytes']:.0f} MB (this package's "
        "matcher does not store it)"
    )
    best = f"    mean IoU of the best anchors: {fit.mean_anchor_iou:.2f}"
    if fit.suggested_mean_anchor_iou < fit.mean_anchor_iou + WORTHWHILE:
        yield f"{best}; none of the other anchors tried is much better"
    else:
        sizes = " ".join(map(str, shape.anchor_sizes))
        ratios = " ".join(f"{ratio:g}" for ratio in shape.aspect_ratios)
        yield f"{best}; {fit.suggested_mean_anchor_iou:.2f} with these anchors:"
        yield f"      --anchor-sizes {sizes} --aspect-ratios {ratios}"


def _bars(counts: dict[str, int]) -> Iterator[str]:
    total, most = sum(counts.values()), max(*counts.values(), 1)
    for name, count in counts.items():
        bar = "#" * round(BAR * count / most)
        yield f"      {name:8} {bar:{BAR}} {count:7}  {100 * count / total:5.1f}%"


def convert(
    source: tyro.conf.Positional[Path],
    destination: tyro.conf.Positional[Path],
    split: tuple[float, ...] = (),
    seed: int = 0,
    images: Path | None = None,
    allow_outside: Flag = False,
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Rewrite a data set of another tool in COCO format.

    Reads labelme, Pascal VOC, YOLO, CVAT XML, VIA, Label Studio, Supervisely, FiftyOne, folders of
    PNG instance masks and COCO; the format is recognised by its content. Images are linked where
    the file system allows it, and copied otherwise.

    Args:
        source: Annotation file, or folder of the data set.
        destination: New folder, which gets images/ and annotations/.
        split: Fractions of the images for training, validation and, if there is a third, test,
            such as 0.8 0.2; by default all images are in one file.
        seed: Of the order in which images are drawn for the split.
        images: Folder of the images; by default it is searched near the annotations.
        allow_outside: Read images whose file_name leads out of their folder.
        max_pixels: Refuse images with more pixels.
    """
    from maskrcnn_scratch.data.convert import split_content, write_dataset
    from maskrcnn_scratch.data.formats import read_dataset

    if split and (len(split) not in (2, 3) or min(split) <= 0 or abs(sum(split) - 1) > 1e-6):
        raise UsageError(f"--split takes two or three positive fractions that add up to 1: {split}")
    with pixel_limit(max_pixels):
        content, folder, _ = read_dataset(source)
    problems: list[Problem] = []
    for key, kind in ENTRIES:
        well_formed(content[key], kind, problems)
    if problems:
        more = f" and {len(problems) - 1} more" * (len(problems) > 1)
        raise ValueError(f"{source}: {problems[0].kind}: {problems[0].detail}{more}")
    subsets = split_content(content, split, seed)
    for file in write_dataset(subsets, images or folder, destination, allow_outside):
        print(file)
    return 0
