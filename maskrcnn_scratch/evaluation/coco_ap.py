"""COCO's average precision and recall, by hotcoco, which gives pycocotools' numbers bit for bit.

Shapes: arrays of precision are [IoU thresholds 0.50:0.05:0.95, recall thresholds, categories, area
ranges (all, small, medium, large), limits on detections per image], arrays of recall the same
without recall thresholds.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskrcnn_scratch.data.coco_fields import parse_bbox
from maskrcnn_scratch.data.coco_json import coco_content, read_coco_json, read_json
from maskrcnn_scratch.evaluation.ground_truth import ground_truth
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.plain_values import shown

if TYPE_CHECKING:
    from hotcoco import COCO, COCOeval

COCO_MAX_DETECTIONS = 100
IouType = Literal["bbox", "segm"]
CocoResult = dict[str, Any]

METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)


CONFUSION_MIN_SCORE = 0.5  # of the detections that the confusion matrix counts
NOT_COMPUTED = -1.0  # there is no object to detect


@dataclass(frozen=True)
class CocoScore:
    """Scores of one set of detections. Some may be ``NOT_COMPUTED``."""

    iou_type: IouType
    stats: tuple[float, ...]
    """COCO's twelve numbers, in the order of ``METRICS``."""
    per_class: dict[str, dict[str, float]]
    """AP, AP50, AP75 and AR100 of each category, by its name."""
    tide: dict[str, Any] | None = None
    """Loss of AP50 by each kind of error, and their numbers (Bolya et al., TIDE)."""
    confusion_matrix: dict[str, Any] | None = None
    """``matrix`` counts detections with a score of at least 0.5 at IoU 0.5, with a row per true
    category and a column per detected one, background last. ``names`` are the names of both."""
    precision_recall: dict[str, Any] | None = None
    """At IoU 0.5: ``recall`` [101] from 0 to 1, and ``precision`` [101] of each category with
    objects, by its name. Its mean is the category's AP50."""

    @property
    def metrics(self) -> dict[str, float]:
        """The twelve numbers by name, as ``segm/AP``."""
        names = (f"{self.iou_type}/{metric}" for metric in METRICS)
        return dict(zip(names, self.stats, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, without the curves; ``stats`` are the twelve numbers."""
        content = asdict(self)
        del content["precision_recall"]
        return content


def score(
    annotations: str | PathLike[str] | Mapping[str, Any],
    results: str | PathLike[str] | Sequence[CocoResult],
    iou_type: IouType = "segm",
    *,
    image_ids: Sequence[int] | None = None,
    min_score: float = 0.0,
    max_detections: int | None = None,
    crowds_as_objects: bool = False,
    tide: bool = False,
    confusion_matrix: bool = False,
    precision_recall: bool = False,
) -> CocoScore:
    """Scores COCO results against COCO annotations. Both are a file or its content.

    Detections are small, medium or large by the area of their mask for ``segm``, and of their box
    for ``bbox``. A result without a box gets the box around its mask, with the mask's area. Crowd
    regions and annotations with ``ignore`` count neither as hits nor as misses. Without any result
    the score is 0.

    Args:
        image_ids: the images that count; by default all images of ``annotations``.
        min_score: results with lower scores are dropped.
        max_detections: the best detections per image and category that count. COCO uses 100, which
            is the default. If an image has more objects of a category, the default is high enough
            for all of them and for all results, with a warning.
        crowds_as_objects: score crowd regions as single objects.
        tide: compute the errors by kind as well.
        confusion_matrix: compute the confusion matrix as well.
        precision_recall: keep the curves as well.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not COCO annotations or results; or a result has an unknown image or
            category, or no valid score, box or mask. The message names the result.
        ImportError: hotcoco is not installed.
    """
    if max_detections is not None and max_detections <= 10:
        raise ValueError(f"max_detections must be over 10, got {max_detections}")
    truth = _load_annotations(annotations, iou_type, crowds_as_objects)
    name = "results"
    if isinstance(results, (str, PathLike)):
        name, results = str(results), read_json(results)
    detections = _check_results(name, results, iou_type, truth, min_score)
    if max_detections is None:
        max_detections = _default_max_detections(truth, detections)
    evaluation = _coco_eval(truth, truth.load_res(detections), iou_type)
    evaluation.params.max_dets = [1, 10, max_detections]
    if image_ids is not None:
        evaluation.params.img_ids = sorted(image_ids)
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hotcoco warns of a limit other than 100
        evaluation.run()
    return CocoScore(
        iou_type,
        tuple(map(float, evaluation.stats)),
        _per_class(evaluation, truth),
        evaluation.tide_errors() if tide else None,
        _confusion_matrix(evaluation) if confusion_matrix else None,
        _precision_recall(evaluation, truth) if precision_recall else None,
    )


def _load_annotations(
    annotations: str | PathLike[str] | Mapping[str, Any],
    iou_type: IouType,
    crowds_as_objects: bool,
) -> COCO:
    """The ground truth for hotcoco, which parses strictly: only the fields that scoring needs."""
    try:
        from hotcoco import COCO
    except ImportError as error:
        raise ImportError(
            "evaluation needs hotcoco: pip install 'maskrcnn_scratch[evaluate]'"
        ) from error
    if isinstance(annotations, Mapping):
        name, content = "annotations", coco_content(dict(annotations))
    else:
        name, content = str(annotations), read_coco_json(annotations)
    if crowds_as_objects:
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 0
    truth = ground_truth(content, name, iou_type)
    try:
        return COCO(truth)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: {shown(error, 200)}") from None


def _default_max_detections(truth: COCO, detections: Sequence[CocoResult]) -> int:
    """COCO's limit, or what the data needs if an image has more objects of a category."""
    objects, found = (
        max(Counter((a["image_id"], a["category_id"]) for a in entries).values(), default=0)
        for entries in (truth.anns.values(), detections)
    )
    if objects <= COCO_MAX_DETECTIONS:
        return COCO_MAX_DETECTIONS
    limit = max(objects, found)
    warnings.warn(
        f"an image has {objects} objects of a category: {limit} detections per image and category "
        f"count, where COCO counts {COCO_MAX_DETECTIONS} (max_detections)",
        stacklevel=3,
    )
    return limit


def _coco_eval(truth: COCO, detections: COCO, iou_type: IouType) -> COCOeval:
    from hotcoco import COCOeval

    return COCOeval(truth, detections, iou_type)


def _check_results(
    name: str, results: object, iou_type: IouType, truth: COCO, min_score: float
) -> list[CocoResult]:
    """Each result with what this IoU type compares: a box or a mask, but not both.

    If a result has both, COCO's code uses the area of the box for a mask.
    """
    if not isinstance(results, Sequence) or isinstance(results, str):
        raise ValueError(f"{name}: COCO results are a list, not a {type(results).__name__}")
    sizes = {id: (image["height"], image["width"]) for id, image in truth.imgs.items()}
    categories = set(truth.get_cat_ids())
    ids = {_stem(image.get("file_name", "")): id for id, image in truth.imgs.items()}
    detections = []
    without_mask = []
    _compare_files(name, results, truth)
    for index, result in enumerate(results):
        try:
            if iou_type == "segm" and _is_box_only(result):
                without_mask.append(index)
                continue
            detection = _check_result(result, iou_type, sizes, categories, ids)
        except (ValueError, TypeError) as error:
            known = isinstance(result, Mapping) and "image_id" in result
            image = f" (image id {result['image_id']})" if known else ""
            raise ValueError(f"{name}: result {index}{image}: {error}") from None
        if detection["score"] >= min_score:
            detections.append(detection)
    if without_mask and len(without_mask) == len(results):
        raise ValueError(f"{name}: no result has a 'segmentation': score boxes (bbox)")
    if without_mask:
        warnings.warn(
            f"{name}: {len(without_mask)} of {len(results)} results have no mask, such as result "
            f"{without_mask[0]}, and are not scored as masks",
            stacklevel=4,
        )
    return detections


def _compare_files(name: str, results: Sequence[CocoResult], truth: COCO) -> None:
    """Warns if results have file names, and other ones than the annotations of their image ids."""
    files = {id: str(image.get("file_name", "")) for id, image in truth.imgs.items()}
    wrong = [
        f"image id {result['image_id']} is {result['file_name']} in the results and "
        f"{files[result['image_id']]} in the annotations"
        for result in results
        if isinstance(result, Mapping)
        and result.get("file_name")
        and files.get(result.get("image_id"))  # type: ignore[arg-type]
        and _stem(result["file_name"]) != _stem(files[result["image_id"]])
    ]
    if wrong:
        warnings.warn(
            f"{name}: results of {len(dict.fromkeys(wrong))} images are of other files than the "
            f"annotations: {wrong[0]}",
            stacklevel=4,
        )


def _stem(file_name: object) -> str:
    return str(file_name).replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _is_box_only(result: object) -> bool:
    return isinstance(result, Mapping) and "bbox" in result and not result.get("segmentation")


def _check_result(
    result: CocoResult,
    iou_type: IouType,
    sizes: Mapping[int, tuple[int, int]],
    categories: set[int],
    ids: Mapping[str, int],
) -> CocoResult:
    if not isinstance(result, Mapping):
        raise TypeError(f"not an object but {result!r}")
    missing = {"image_id", "category_id", "score"} - result.keys()
    if missing:
        raise ValueError(f"no {min(missing)!r}")
    image_id, category_id = result["image_id"], result["category_id"]
    if image_id not in sizes:
        file, name = "", result.get("file_name")
        if name:
            known = f" has id {ids[_stem(name)]} there" if _stem(name) in ids else ""
            file = f"; {name!r}{known}"
        raise ValueError(f"the annotations have no image with id {image_id!r}{file}")
    if category_id not in categories:
        raise ValueError(f"unknown category id {category_id!r}")
    confidence = float(result["score"])
    if math.isnan(confidence):
        raise ValueError("the score is NaN")
    detection = {"image_id": image_id, "category_id": category_id, "score": confidence}
    if iou_type == "bbox" and "bbox" in result:
        return detection | {"bbox": parse_bbox(result["bbox"])}
    if "segmentation" not in result:
        raise ValueError(f"no {'segmentation' if iou_type == 'segm' else 'bbox'!r}")
    return detection | {
        "segmentation": rle.from_segmentation(result["segmentation"], sizes[image_id])
    }


def _per_class(evaluation: COCOeval, truth: COCO) -> dict[str, dict[str, float]]:
    assert evaluation.eval is not None
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category]
    recall = evaluation.eval["recall"][:, :, 0, -1]  # [IoU, category]
    return {
        truth.cats[category].get("name", str(category)): {
            "AP": _mean(precision[:, :, k]),
            "AP50": _mean(precision[0, :, k]),
            "AP75": _mean(precision[5, :, k]),
            "AR100": _mean(recall[:, k]),
        }
        for k, category in enumerate(evaluation.params.cat_ids)
    }


def _precision_recall(evaluation: COCOeval, truth: COCO) -> dict[str, Any]:
    assert evaluation.eval is not None
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # [recall, category] at IoU 0.5
    return {
        "recall": np.linspace(0, 1, len(precision)).tolist(),
        "precision": {
            truth.cats[category].get("name", str(category)): precision[:, k].tolist()
            for k, category in enumerate(evaluation.params.cat_ids)
            if precision[:, k].min() > -1
        },
    }


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else NOT_COMPUTED


def _confusion_matrix(evaluation: COCOeval) -> dict[str, Any]:
    found = evaluation.confusion_matrix(min_score=CONFUSION_MIN_SCORE)
    return {"matrix": found["matrix"].tolist(), "names": [*found["cat_names"], "background"]}
