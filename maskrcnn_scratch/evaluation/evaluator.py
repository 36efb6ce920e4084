"""Scores a model again and again on one data set, and keeps the last scores and detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from maskrcnn_scratch.evaluation.coco_ap import CocoResult, CocoScore, IouType
from maskrcnn_scratch.evaluation.model_results import evaluate_model


class Evaluator:
    """A function from a model to its metrics by name, such as ``segm/AP``.

    Args:
        dataset: as for ``evaluate_model``.
        iou_types: what is scored.
        device: device of the model.
        num_workers: processes that read images.
        details: also keep confusion matrix and curves.

    Attributes:
        scores: of the last call, by IoU type.
        results: COCO results of the last call, on the main process.
    """

    def __init__(
        self,
        dataset: Any,
        iou_types: Sequence[IouType],
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        details: bool = False,
    ) -> None:
        self.dataset, self.iou_types, self.details = dataset, iou_types, details
        self.device, self.num_workers = device, num_workers
        self.scores: Mapping[IouType, CocoScore] = {}
        self.results: list[CocoResult] = []

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.scores = evaluate_model(
            model,
            self.dataset,
            device=self.device,
            num_workers=self.num_workers,
            iou_types=self.iou_types,
            on_results=self._keep,
            confusion_matrix=self.details,
            precision_recall=self.details,
        )
        return {name: v for score in self.scores.values() for name, v in score.metrics.items()}

    def _keep(self, results: list[CocoResult]) -> None:
        self.results = results
