"""``val_predictions.jpg``: ground truth beside detections, the worst images first.

Shapes: G objects and D detections of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.pictures.objects import Drawn, draw_objects
from maskrcnn_scratch.pictures.style import short

MOST_IMAGES = 8
MIN_SCORE = 0.5  # of the detections that are shown and counted
MIN_IOU = 0.5


@dataclass(frozen=True)
class Outcome:
    """How the detections of one image agree with its objects."""

    found: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        """F1 score; 1 for an image without objects and detections."""
        total = 2 * self.found + self.missed + self.false
        return 2 * self.found / total if total else 1.0


def compare(truth: Drawn, detected: Drawn) -> Outcome:
    """Counts matches of equal class with box IoU of at least 0.5, best detections first."""
    iou = box_iou(_boxes(detected), _boxes(truth))  # [D, G]
    same = torch.tensor(detected.labels)[:, None] == torch.tensor(truth.labels)[None]
    iou = iou.masked_fill(~same, 0) if iou.numel() else iou
    found = 0
    for index in np.argsort(-np.array(detected.scores or []), kind="stable"):
        best = int(iou[index].argmax()) if iou.shape[1] else 0
        if iou.shape[1] and iou[index, best] >= MIN_IOU:
            found += 1
            iou[:, best] = 0
    return Outcome(found, len(truth.labels) - found, len(detected.labels) - found)


def worst_first(dataset: Any, results: Sequence[Mapping[str, Any]]) -> list[tuple[Outcome, int]]:
    """The images of a ``CocoDataset`` with objects or detections, as (outcome, index).

    The lowest F1 comes first; among equal ones, the image with more mistakes. No image is read.
    """
    by_image = results_by_image(results)
    outcomes = []
    for index, image_id in enumerate(dataset.image_ids.tolist()):
        boxes, labels = dataset.boxes_of(index)
        detected = detections_of(by_image.get(image_id, []), dataset, index)
        if len(labels) or len(detected.labels):
            outcomes.append((compare(Drawn(boxes, labels.tolist()), detected), index))
    return sorted(outcomes, key=lambda item: (item[0].f1, -item[0].missed - item[0].false))


def predictions_figure(dataset: Any, results: Sequence[Mapping[str, Any]]) -> Figure:
    """Ground truth and detections of the worst images, side by side.

    Args:
        dataset: a ``CocoDataset``.
        results: COCO results for it. Those with a score below 0.5 are not shown.
    """
    worst = worst_first(dataset, results)[:MOST_IMAGES]
    by_image = results_by_image(results)
    rows = max(1, (len(worst) + 1) // 2)
    shape = np.median([dataset.sizes[i, 0] / dataset.sizes[i, 1] for _, i in worst] or [1])
    figure = Figure(
        figsize=(11, rows * (2.7 * min(float(shape), 1.6) + 0.35) + 0.6), layout="constrained"
    )
    figure.suptitle(
        f"validation images, worst first: ground truth left, detections with score of at least "
        f"{MIN_SCORE:g} right",
        fontsize=10,
    )
    grid = figure.subplots(rows, 4, squeeze=False).reshape(-1, 2)
    for pair in grid[len(worst) :]:
        for axes in pair:
            axes.set_axis_off()
    for (left, right), (outcome, index) in zip(grid, worst, strict=False):
        image, target = dataset[index]  # [3, H, W]
        pixels = (image.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        masks = list(target["masks"].numpy())
        truth = Drawn(target["boxes"].numpy(), target["labels"].tolist(), masks)
        found = by_image.get(int(dataset.image_ids[index]), [])
        draw_objects(left, pixels, truth, dataset.class_names)
        draw_objects(right, pixels, detections_of(found, dataset, index), dataset.class_names)
        left.set_title(short(target["file_name"], 36), fontsize=7)
        right.set_title(
            f"{outcome.found} found, {outcome.missed} missed, {outcome.false} false", fontsize=7
        )
    return figure


def results_by_image(
    results: Sequence[Mapping[str, Any]],
) -> dict[int, list[Mapping[str, Any]]]:
    """COCO results with a score of at least 0.5, by image id."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for result in results:
        if float(result["score"]) >= MIN_SCORE:
            found.setdefault(result["image_id"], []).append(result)
    return found


def detections_of(results: Sequence[Mapping[str, Any]], dataset: Any, index: int) -> Drawn:
    """The COCO results of image ``index``. A result without a box gets that of its mask."""
    size = (int(dataset.sizes[index, 0]), int(dataset.sizes[index, 1]))
    boxes, labels, scores, masks = [], [], [], []
    for result in results:
        segmentation = result.get("segmentation")
        mask = rle.from_segmentation(segmentation, size) if segmentation else None
        x, y, width, height = result.get("bbox") or rle.bounding_box(mask or {})
        boxes.append((x, y, x + width, y + height))
        labels.append(dataset.category_labels.get(result["category_id"], 0))
        scores.append(float(result["score"]))
        if mask is not None:
            masks.append(mask)
    return Drawn(
        np.array(boxes, np.float32).reshape(-1, 4),
        labels,
        masks if len(masks) == len(boxes) else None,
        scores,
    )


def _boxes(objects: Drawn) -> Tensor:
    return torch.from_numpy(np.asarray(objects.boxes, np.float32).reshape(-1, 4))
