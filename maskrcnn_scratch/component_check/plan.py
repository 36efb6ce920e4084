"""What a kind of part brings along for its check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from maskrcnn_scratch.component_check.result import CheckResult
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN


@dataclass(frozen=True)
class Plan:
    """The checks of one part.

    Attributes:
        checks: of the part alone. They run while they are iterated over; the later ones need the
            first, types and shapes.
        model_with: puts a part of this kind into a small model, in eval mode.
        default: makes the part that the small model has otherwise; None if there is none.
        call: runs a part on example inputs, to measure it.
        training_only: whether inference never calls the part.
    """

    checks: Iterable[CheckResult]
    model_with: Callable[[Any], GeneralizedRCNN]
    default: Callable[[], Any] | None = None
    call: Callable[[Any], Any] | None = None
    training_only: bool = False
