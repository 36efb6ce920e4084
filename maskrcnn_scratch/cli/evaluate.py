"""``maskrcnn evaluate``: COCO's box and mask AP of a model, or of a results file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from maskrcnn_scratch.cli import UsageError, pick_device
from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.data.image_folder import find_image_folder
from maskrcnn_scratch.evaluation.coco_ap import (
    METRICS,
    NOT_COMPUTED,
    CocoResult,
    CocoScore,
    IouType,
    score,
)
from maskrcnn_scratch.files import write_json

TITLES = {"bbox": "boxes", "segm": "masks"}
CONFUSIONS = 15  # number of lines shown


def evaluate(
    annotations: Path,
    results: Path | None = None,
    weights: Path | None = None,
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
    allow_outside: bool = False,
) -> int:
    """Compute COCO's twelve metrics for boxes and masks.

    Give either --results, a COCO results file, or --weights, a model that is run first.

    Args:
        annotations: COCO annotation file with the ground truth.
        results: COCO results file to score.
        weights: Weights or checkpoint of the model to score.
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
        allow_outside: Read images whose file_name leads out of the folder.
    """
    options: dict[str, Any] = {
        "min_score": min_score,
        "max_detections": max_detections,
        "crowds_as_objects": crowds_as_objects,
        "tide": tide,
        "confusion_matrix": confusion_matrix or out is not None,
        "precision_recall": out is not None,
    }
    found: list[CocoResult] = []
    scores: Mapping[IouType, CocoScore]
    if results is not None and save_results is not None:
        raise UsageError("--save-results needs --weights")
    if results is not None and weights is None:
        kinds = (iou_type,) if iou_type else iou_types_of(read_json(results))
        scores = {kind: score(annotations, results, kind, **options) for kind in kinds}
        found = read_json(results)
    elif weights is not None and results is None:
        scores = evaluate_weights(
            weights, model, annotations, images or find_image_folder(annotations),
            pick_device(device), iou_type, allow_outside,
            batch_size=batch_size, num_workers=num_workers, results_file=save_results,
            on_results=found.extend, **options,
        )  # fmt: skip
    else:
        raise UsageError("give either --results or --weights")
    print("\n".join(format_scores(scores, per_class, confusion_matrix)))
    if out is not None:
        draw_pictures(out, scores, found, annotations, images, crowds_as_objects,
                      allow_outside)  # fmt: skip
    if json is not None:
        contents = {kind: each.to_json() for kind, each in scores.items()}
        write_json(json, contents[iou_type] if iou_type else contents)
    return 0


def draw_pictures(
    folder: Path,
    scores: Mapping[IouType, CocoScore],
    results: list[CocoResult],
    annotations: Path,
    images: Path | None,
    crowds_as_objects: bool,
    allow_outside: bool,
) -> None:
    """Writes the pictures of an evaluation and prints their names."""
    from maskrcnn_scratch.data.coco import CocoDataset
    from maskrcnn_scratch.pictures.run_pictures import draw_evaluation

    dataset = CocoDataset(
        annotations,
        images or find_image_folder(annotations),
        crowds_as_objects=crowds_as_objects,
        allow_outside=allow_outside,
    )
    for path in draw_evaluation(folder, scores, results, dataset):
        print(path)


def iou_types_of(results: object) -> tuple[IouType, ...]:
    """The IoU types that the results can be scored for: boxes, and masks if a result has one."""
    entries = results if isinstance(results, list) else []
    if any(entry.get("segmentation") for entry in entries if isinstance(entry, dict)):
        return ("bbox", "segm")
    return ("bbox",)


def evaluate_weights(
    weights: Path,
    model: str | None,
    annotations: Path,
    images: Path,
    device: str,
    iou_type: IouType | None,
    allow_outside: bool,
    **options: Any,
) -> Mapping[IouType, CocoScore]:
    """Runs the model of a weights file on a data set and scores it; as ``evaluate_model``."""
    from tqdm import tqdm

    from maskrcnn_scratch.builders.custom import find_builder
    from maskrcnn_scratch.builders.from_config import load_trained
    from maskrcnn_scratch.data.categories import match_categories, warn_about_classes
    from maskrcnn_scratch.data.coco import CocoDataset
    from maskrcnn_scratch.evaluation.model_results import evaluate_model

    trained = load_trained(weights, None if model is None else find_builder(model))
    dataset = CocoDataset(
        annotations,
        images,
        lambda names: match_categories(names, trained.class_names, trained.category_labels),
        allow_outside=allow_outside,
    )
    warn_about_classes(
        annotations, dataset.categories, dataset.category_labels, trained.class_names, "the model"
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
