"""Checks of a whole model. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from maskrcnn_scratch.component_check.host import images_and_targets
from maskrcnn_scratch.component_check.in_model import num_classes
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import Subject, shapes
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN


def plan(subject: Subject) -> Plan:
    """A plan for a ``GeneralizedRCNN``: nearly all of its checks are those of ``in_model``."""
    return Plan(checks=_checks(subject), model_with=lambda part: part)


def _checks(subject: Subject) -> Iterator[CheckResult]:
    yield outcome("types and shapes", lambda: has_stages(subject.part, subject.setting.side))


@torch.no_grad()
def has_stages(part: Any, side: int) -> str:
    """It detects in eval mode, and its stages can be looked at."""
    require(
        isinstance(part, GeneralizedRCNN),
        f"is {type(part).__module__}.{type(part).__name__}, expected a GeneralizedRCNN",
    )
    images, _ = images_and_targets(1, side, num_classes(part))
    results = part(images)
    require(
        {"boxes", "labels", "scores"} <= results[0].keys(),
        f"a result is {shapes(results[0])}, expected boxes, labels and scores",
    )
    return f"{num_classes(part)} classes, result {shapes(results[0])}"
