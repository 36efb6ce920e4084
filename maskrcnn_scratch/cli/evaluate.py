"""``maskrcnn evaluate``: COCO's box and mask AP of a model, or of a results file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from maskrcnn_scratch.cli import UsageError, pick_device
from maskrcnn_scratch.cli.load import load
from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.data.image_folder import find_image_folder, is_file, sample_file_names
from maskrcnn_scratch.data.pixel_limit import MAX_PIXELS, pixel_limit
from maskrcnn_scratch.dataset_check.report import turned_text
from maskrcnn_scratch.evaluation.coco_ap import (
    METRICS,
    NOT_COMPUTED,
    CocoResult,
    CocoScore,
    IouType,
    score,
)
from maskrcnn_scratch.files import check_writable, write_json

if TYPE_CHECKING:
    from maskrcnn_scratch.data.coco import CocoDataset

TITLES = {"bbox": "boxes", "segm": "masks"}
CONFUSIONS = 15  # number of lines shown


def evaluate(
    annotations: Path,
    results: Path | None = None,
    weights: str | None = None,
    model: str | None = None,
    images: Path | None = None,
    iou_type: IouType | None = None,
    min_score: float = 0.0,
    max_detections: int | None = None,
    crowds_as_objects: bool = False,
    per_class: bool = False,
    tide: bool = False,
    confusion_matrix: bool = False,
    json: Path | None = None,
    save_results: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    batch_size: int = 1,
    num_workers: int = 2,
    skip_bad: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    allow_outside: bool = False,
    no_exif: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Compute COCO's twelve metrics for boxes and masks.

    Give either --results, a COCO results file, or --weights, a model that is run first.

    Args:
        annotations: Ground truth: a COCO annotation file, or a file or folder of another format
            that maskrcnn train reads.
        results: COCO results file to score.
        weights: Model to score: COCO_V1 (downloaded), a weights file or checkpoint, or its address:
            https://HOST/FILE#sha256=DIGITS or hf://OWNER/NAME/FILE.
        model: Your function build(config, num_classes), as for maskrcnn train: FILE.py:NAME.
        images: Folder of the images; by default it is searched near the annotation file.
        iou_type: Score only boxes or only masks; by default both, if the results have both.
        min_score: Drop detections with lower scores.
        max_detections: Maximum number of detections per image and category that count. By default
            100, as in COCO, or more if the model gives more or an image has more objects.
        crowds_as_objects: Score annotations with iscrowd 1 as single objects.
        per_class: Show the metrics of each class.
        tide: Show how much AP50 each kind of error costs.
        confusion_matrix: Show which classes were confused, among detections with a score of at
            least 0.5.
        json: Write all numbers to this file. With --iou-type, "stats" has the twelve metrics;
            without it, "bbox" and "segm" have a "stats" each.
        save_results: Write the model's detections to this file, as COCO results.
        out: Write val_predictions.jpg (ground truth beside detections, the worst images first),
            confusion_matrix.png and pr_curve.png to this folder.
        device: Device of the model: auto, cpu, cuda, cuda:1 ...
        batch_size: Largest number of images per batch. Only images that are padded to the same
            size form a batch, since padding changes results: they do not depend on this option,
            except for rounding.
        num_workers: Processes that read images.
        skip_bad: Score without the images and annotations that have errors, and count them, instead
            of ending at the first. All images are read once more, before the model runs.
        allow_outside: Read images whose file_name leads out of the folder.
        no_exif: Read images as they are stored, without the rotation of their EXIF orientation.
        max_pixels: Refuse images with more pixels.
    """
    options: dict[str, Any] = {
        "min_score": min_score,
        "max_detections": max_detections,
        "crowds_as_objects": crowds_as_objects,
        "tide": tide,
        "confusion_matrix": confusion_matrix or out is not None,
        "precision_recall": out is not None,
    }
    if (results is None) == (weights is None):
        raise UsageError("give either --results or --weights")
    if results is not None and save_results is not None:
        raise UsageError("--save-results needs --weights")
    if skip_bad and weights is None:
        raise UsageError("--skip-bad needs --weights")
    for output in filter(None, (json, save_results)):
        check_writable(output)
    found: list[CocoResult] = []
    scores: Mapping[IouType, CocoScore]
    with TemporaryDirectory() as folder, pixel_limit(max_pixels):
        if skip_bad:
            truth, image_folder = without_bad(
                annotations, images, Path(folder), apply_exif=not no_exif,
                crowds_as_objects=crowds_as_objects, allow_outside=allow_outside,
            )  # fmt: skip
        else:
            truth, image_folder = as_coco(annotations, Path(folder))
        opened = partial(
            open_dataset,
            truth,
            images or image_folder,
            apply_exif=not no_exif,
            crowds_as_objects=crowds_as_objects,
            allow_outside=allow_outside,
        )
        if results is not None:
            kinds = (iou_type,) if iou_type else iou_types_of(read_json(results))
            scores = {kind: score(truth, results, kind, **options) for kind in kinds}
            found = read_json(results)
        elif weights is not None:
            scores = evaluate_weights(
                weights, model, annotations, opened, pick_device(device), iou_type,
                batch_size=batch_size, num_workers=num_workers, results_file=save_results,
                on_results=found.extend, **options,
            )  # fmt: skip
        print("\n".join(format_scores(scores, per_class, confusion_matrix)))
        if out is not None:
            draw_pictures(out, scores, found, opened())
    if json is not None:
        contents = {kind: each.to_json() for kind, each in scores.items()}
        write_json(json, contents[iou_type] if iou_type else contents)
    return 0


def as_coco(source: Path, folder: Path) -> tuple[Path, Path]:
    """A COCO annotation file of the data set, and the folder of its images.

    Args:
        folder: for the file, if the data set is of another format.
    """
    from maskrcnn_scratch.data.convert import plain_content
    from maskrcnn_scratch.data.formats import read_dataset

    if is_file(source) and sample_file_names(source):  # COCO, which need not be parsed here
        return source, find_image_folder(source)
    content, image_folder, file = read_dataset(source)
    if file is None:
        file = folder / f"{source.stem}.json"
        write_json(file, plain_content(content))
    return file, image_folder


def without_bad(
    source: Path, images: Path | None, folder: Path, **options: Any
) -> tuple[Path, Path]:
    """As ``as_coco``, for a data set whose images and annotations with errors are skipped.

    Args:
        options: of ``dataset_check.check_content``.

    Raises:
        ValueError: nothing is left.
    """
    from maskrcnn_scratch.dataset_check.prepare import prepare

    copy = folder / f"{source.stem}.json"
    found = prepare(source, images, copy, skip_bad=True, decode_images=True, **options)
    return found.annotation_file, found.image_folder


def open_dataset(annotations: Path, images: Path, *args: Any, **options: Any) -> CocoDataset:
    """``CocoDataset`` with these arguments, imported here to keep ``--help`` fast."""
    from maskrcnn_scratch.data.coco import CocoDataset

    return CocoDataset(annotations, images, *args, **options)


def check_files(dataset: CocoDataset) -> None:
    """Looks at the headers of all images before the model runs.

    It warns of images that are turned by EXIF, where the size does not tell that annotations are
    for the turned image.

    Raises:
        FileNotFoundError: images are missing, naming the first.
        ValueError: one cannot be read, or has too many pixels.
    """
    from maskrcnn_scratch.data.image import read_header

    files = [dataset.path(index) for index in range(len(dataset))]
    missing = [file for file in files if not is_file(file)]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: no such image file ({len(missing)} of {len(files)} are missing)"
        )
    turned = [
        file
        for file, (height, width) in zip(files, dataset.sizes.tolist(), strict=True)
        if read_header(file, behind_pixels=False).turn_is_uncertain((height, width))
    ]
    if turned and dataset.apply_exif:
        warnings.warn(turned_text(dataset.annotation_file, turned), stacklevel=2)


def draw_pictures(
    folder: Path,
    scores: Mapping[IouType, CocoScore],
    results: list[CocoResult],
    dataset: CocoDataset,
) -> None:
    """Writes the pictures of an evaluation and prints their names."""
    from maskrcnn_scratch.pictures.run_pictures import draw_evaluation

    for path in draw_evaluation(folder, scores, results, dataset):
        print(path)


def iou_types_of(results: object) -> tuple[IouType, ...]:
    """The IoU types that the results can be scored for: boxes, and masks if a result has one."""
    entries = results if isinstance(results, list) else []
    if any(entry.get("segmentation") for entry in entries if isinstance(entry, dict)):
        return ("bbox", "segm")
    return ("bbox",)


def evaluate_weights(
    weights: str,
    model: str | None,
    annotations: Path,
    opened: Callable[..., CocoDataset],
    device: str,
    iou_type: IouType | None,
    **options: Any,
) -> Mapping[IouType, CocoScore]:
    """Runs a model on a data set and scores it.

    Args:
        annotations: what the user calls the data set.
        opened: returns the data set for a mapping from categories to labels.
        **options: of ``evaluate_model``.

    Raises:
        FileNotFoundError, ValueError: as ``check_files``.
    """
    from tqdm import tqdm

    from maskrcnn_scratch.data.categories import match_categories, warn_about_classes
    from maskrcnn_scratch.evaluation.model_results import evaluate_model

    trained = load(weights, model=model)
    dataset = opened(
        lambda names: match_categories(names, trained.class_names, trained.category_labels)
    )
    check_files(dataset)
    warn_about_classes(
        annotations,
        dataset.categories,
        dataset.category_labels,
        trained.class_names,
        "the model",
        dataset.used_categories,
    )
    kinds: tuple[IouType, ...] = (
        ("bbox", "segm") if trained.model.roi_heads.has_mask() else ("bbox",)
    )
    return evaluate_model(
        trained.model.to(device),
        dataset,
        device=device,
        iou_types=(iou_type,) if iou_type else kinds,
        progress=partial(tqdm, desc="evaluating", unit="batch"),
        **options,
    )


def format_scores(
    scores: Mapping[IouType, CocoScore], per_class: bool, confusions: bool = True
) -> Iterator[str]:
    """The scores as lines of text; ``confusions``: with the most frequent confusions."""
    yield from format_table(
        ("", *METRICS), [(TITLES[kind], *found.stats) for kind, found in scores.items()]
    )
    for kind, found in scores.items():
        if per_class:
            yield from ("", f"{TITLES[kind]} per class")
            columns = list(next(iter(found.per_class.values()), {}))
            yield from format_table(
                ("", *columns),
                [(name, *values.values()) for name, values in found.per_class.items()],
            )
        if found.tide:
            yield from ("", f"{TITLES[kind]}: errors, and the AP50 that each kind costs")
            names, costs = list(found.tide["counts"]), found.tide["delta_ap"]
            numbers = ("number", *map(str, found.tide["counts"].values()))
            yield from format_table(("", *names), [numbers, ("cost", *map(costs.get, names))])
        if found.confusion_matrix and confusions:
            yield from (
                "",
                f"{TITLES[kind]}: most frequent confusions (IoU 0.5, score 0.5)",
            )
            yield from _format_confusions(**found.confusion_matrix)


def _format_confusions(matrix: list[list[int]], names: list[str]) -> Iterator[str]:
    confusions = [
        (count, names[row], names[column])
        for row, counts in enumerate(matrix)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    for count, true, detected in sorted(confusions, reverse=True)[:CONFUSIONS]:
        yield f"  {count:6}  {true} -> {detected}"


def format_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Aligned columns of texts and numbers. -1, which means "not computed", is a dash."""
    cells = [
        [
            str(cell) if isinstance(cell, str) else "-" if cell == NOT_COMPUTED else f"{cell:.3f}"
            for cell in row
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for first, *others in (header, *cells):
        texts = [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([f"{first:<{widths[0]}}", *texts])
