"""The pictures of results, and the callback that draws them while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_scratch.evaluation.coco_ap import (
    CONFUSION_MIN_SCORE,
    CocoResult,
    CocoScore,
    IouType,
)
from maskrcnn_scratch.evaluation.evaluator import Evaluator
from maskrcnn_scratch.pictures.predictions import predictions_figure
from maskrcnn_scratch.pictures.results import read_log, results_figure
from maskrcnn_scratch.pictures.save import try_to_save
from maskrcnn_scratch.pictures.scores import TITLES, confusion_figure, precision_figure


class RunPictures:
    """Draws the curves after each validation, and the predictions of the best model.

    Args:
        folder: folder of the run.
        evaluator: of a ``CocoDataset``, with details; None without validation.
    """

    def __init__(self, folder: Path, evaluator: Evaluator | None = None) -> None:
        self.folder, self.evaluator = folder, evaluator

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Draws nothing."""

    def on_validation(self, step: int, metrics: Mapping[str, float], is_best: bool) -> None:
        self._draw_curves()
        if is_best and self.evaluator is not None and self.evaluator.scores:
            draw_evaluation(
                self.folder, self.evaluator.scores, self.evaluator.results, self.evaluator.dataset
            )

    def on_end(self) -> None:
        self._draw_curves()

    def _draw_curves(self) -> None:
        try_to_save(
            self.folder / "results.png",
            lambda: results_figure(read_log(self.folder / "log.jsonl")),
        )


def draw_evaluation(
    folder: Path,
    scores: Mapping[IouType, CocoScore],
    results: Sequence[CocoResult],
    dataset: Any,
) -> list[Path]:
    """Writes ``val_predictions.jpg``, ``confusion_matrix.png`` and ``pr_curve.png``.

    Args:
        scores: by IoU type, with ``confusion_matrix`` and ``precision_recall``.
        results: COCO results.
        dataset: a ``CocoDataset``; None skips the first picture.

    Returns:
        the files that were written.
    """
    best = scores["segm" if "segm" in scores else "bbox"]
    at = f"IoU 0.5, score at least {CONFUSION_MIN_SCORE:g}"
    title = f"confusion of {TITLES[best.iou_type]}: {at}"
    pictures = {
        "val_predictions.jpg": lambda: predictions_figure(dataset, results),
        "confusion_matrix.png": lambda: confusion_figure(
            **(best.confusion_matrix or {"matrix": [], "names": []}), title=title
        ),
        "pr_curve.png": lambda: precision_figure(scores),
    }
    if dataset is None:
        del pictures["val_predictions.jpg"]
    return [folder / name for name, draw in pictures.items() if try_to_save(folder / name, draw)]
