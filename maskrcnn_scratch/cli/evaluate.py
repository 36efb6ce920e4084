"""``maskrcnn evaluate``: COCO's box and mask AP of a model, or of results that a file holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn_scratch.cli import UsageError, pick_device
from maskrcnn_scratch.data.coco_json import find_image_folder, read_json
from maskrcnn_scratch.evaluation.coco_ap import METRICS, CocoScore, IouType, score
from maskrcnn_scratch.files import write_json

if TYPE_CHECKING:
    from maskrcnn_scratch.builders.from_config import TrainedModel
    from maskrcnn_scratch.data.coco import CocoDataset

TITLES = {"bbox": "boxes", "segm": "masks"}
CONFUSIONS = 15  # lines of them


def evaluate(
    annotations: Path,
    results: Path | None = None,
    weights: Path | None = None,
    images: Path | None = None,
    iou_type: IouType | None = None,
    min_score: float = 0.0,
    max_detections: int = 100,
    per_class: bool = False,
    tide: bool = False,
    confusion_matrix: bool = False,
    json: Path | None = None,
    save_results: Path | None = None,
    device: str = "auto",
    batch_size: int = 1,
    num_workers: int = 2,
    allow_outside: bool = False,
) -> int:
    """COCO's twelve numbers for boxes and masks.

    Give either --results, detections in a COCO results file, or --weights, a model to run first.

    Args:
        annotations: COCO annotation file with the ground truth.
        results: Results to score.
        weights: Weights or checkpoint of the model to score.
        images: Folder of the images; by default it is looked for around the annotation file.
        iou_type: Score boxes or masks only; by default both, of results what they hold.
        min_score: Leave out detections with lower scores.
        max_detections: Detections of an image and category that count.
        per_class: Show each class.
        tide: Show what each kind of error costs.
        confusion_matrix: Show which class was taken for which.
        json: Write all of it to this file. With --iou-type "stats" are the twelve numbers, without
            it "bbox" and "segm" hold such a "stats" each.
        save_results: Write the model's detections to this file, as COCO results.
        device: Where the model runs: auto, cpu, cuda, cuda:1 ...
        batch_size: Images at a time, at most. Only images that are padded to the same size share a
            batch, since padding changes results: they do not depend on this option, except for
            rounding.
        num_workers: Processes that read images.
        allow_outside: Read images whose file_name leads out of the folder.
    """
    options: dict[str, Any] = {
        "min_score": min_score,
        "max_detections": max_detections,
        "tide": tide,
        "confusion_matrix": confusion_matrix,
    }
    scores: Mapping[IouType, CocoScore]
    if results is not None and save_results is not None:
        raise UsageError("--save-results is for the results of --weights")
    if results is not None and weights is None:
        kinds = (iou_type,) if iou_type else iou_types_of(read_json(results))
        scores = {kind: score(annotations, results, kind, **options) for kind in kinds}
    elif weights is not None and results is None:
        scores = evaluate_weights(
            weights, annotations, images or find_image_folder(annotations), pick_device(device),
            iou_type, allow_outside,
            batch_size=batch_size, num_workers=num_workers, results_file=save_results, **options,
        )  # fmt: skip
    else:
        raise UsageError("give either --results or --weights")
    print("\n".join(format_scores(scores, per_class)))
    if json is not None:
        contents = {kind: found.to_json() for kind, found in scores.items()}
        write_json(json, contents[iou_type] if iou_type else contents)
    return 0


def iou_types_of(results: object) -> tuple[IouType, ...]:
    """What the results allow to score: masks where there is one, boxes always."""
    entries = results if isinstance(results, list) else []
    if any("segmentation" in entry for entry in entries if isinstance(entry, dict)):
        return ("bbox", "segm")
    return ("bbox",)


def evaluate_weights(
    weights: Path,
    annotations: Path,
    images: Path,
    device: str,
    iou_type: IouType | None,
    allow_outside: bool,
    **options: Any,
) -> Mapping[IouType, CocoScore]:
    """Run the model of a weights file over a data set and score it; as ``evaluate_model``."""
    from tqdm import tqdm

    from maskrcnn_scratch.builders.from_config import load_trained
    from maskrcnn_scratch.data.coco import CocoDataset
    from maskrcnn_scratch.evaluation.model_results import evaluate_model

    trained = load_trained(weights)
    dataset = CocoDataset(annotations, images, trained.category_labels, allow_outside=allow_outside)
    compare_classes(trained, dataset)
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


def compare_classes(trained: TrainedModel, dataset: CocoDataset) -> None:
    """Warns where model and data set do not speak of the same classes."""
    missing, renamed = [], []
    for category, label in trained.category_labels.items():
        in_model, in_file = trained.class_names[label], dataset.categories.get(category)
        if in_file is None:
            missing.append(f"{in_model!r} (id {category})")
        elif in_model not in (in_file, str(label)):  # a number where the weights have no names
            renamed.append(f"{in_file!r} (id {category}), which the model learned as {in_model!r}")
    for verb, found in (("lacks", missing), ("has", renamed)):
        if found:
            more = f" and {len(found) - 3} more" * (len(found) > 3)
            shown = ", ".join(found[:3])
            warnings.warn(f"{dataset.annotation_file} {verb} {shown}{more}", stacklevel=2)


def format_scores(scores: Mapping[IouType, CocoScore], per_class: bool) -> Iterator[str]:
    """The scores as lines of text."""
    yield from format_table(
        ("", *METRICS), [(TITLES[kind], *found.stats) for kind, found in scores.items()]
    )
    for kind, found in scores.items():
        if per_class:
            yield from ("", f"{TITLES[kind]} by class")
            columns = list(next(iter(found.per_class.values()), {}))
            yield from format_table(
                ("", *columns),
                [(name, *values.values()) for name, values in found.per_class.items()],
            )
        if found.tide:
            yield from ("", f"{TITLES[kind]}: errors, and what each kind costs in AP50")
            names, costs = list(found.tide["counts"]), found.tide["delta_ap"]
            numbers = ("number", *map(str, found.tide["counts"].values()))
            yield from format_table(("", *names), [numbers, ("cost", *map(costs.get, names))])
        if found.confusion_matrix:
            yield from ("", f"{TITLES[kind]}: what was most often taken for what, at IoU 0.5")
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
    """Aligned columns of texts and numbers; -1, where there is nothing to find, is a dash."""
    cells = [
        [
            str(cell) if isinstance(cell, str) else "-" if cell == -1 else f"{cell:.3f}"
            for cell in row
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for first, *others in (header, *cells):
        texts = [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([f"{first:<{widths[0]}}", *texts])
