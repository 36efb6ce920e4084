"""Checks of the heads and predictors of the RoI branches. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.component_check.common import (
    TOLERANCE,
    network_checks,
    require_finite,
    require_tensor,
)
from maskrcnn_scratch.component_check.host import WIDTH, model_around
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, NotApplicable, outcome, require
from maskrcnn_scratch.component_check.subject import Subject, noise, relative_error, shapes
from maskrcnn_scratch.roi_heads import (
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    TwoMLPHead,
)
from maskrcnn_scratch.roi_heads.roi_heads import accepts_labels
from maskrcnn_scratch.structures import of_classes

ROIS = 6


def box_head_plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.BoxHead``: pooled ``[R, F, 7, 7]`` to ``[R, E]``."""
    channels = subject.setting.channels
    pooled = noise(ROIS, channels, 7, 7)
    return Plan(
        checks=_checks(subject, pooled, (None,)),
        model_with=lambda part: model_around(subject.setting, box_head=part),
        default=lambda: TwoMLPHead(channels * 7 * 7, WIDTH),
        call=lambda part: part(pooled.clone()),
    )


def mask_head_plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.MaskHead``: pooled ``[R, F, 14, 14]`` to ``[R, E, S, S]``."""
    channels = subject.setting.channels
    pooled = noise(ROIS, channels, 14, 14)
    return Plan(
        checks=_checks(subject, pooled, (None, None, None)),
        model_with=lambda part: model_around(subject.setting, mask_head=part),
        default=lambda: MaskRCNNHeads(channels, (WIDTH,), dilation=1),
        call=lambda part: part(pooled.clone()),
    )


def box_predictor_plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.BoxPredictor``: ``[R, E]`` to logits and deltas of 4 classes."""
    setting = subject.setting
    vectors = noise(ROIS, setting.channels)

    def model_with(part: Any) -> Any:
        return model_around(setting, box_predictor=part, width=setting.channels)

    return Plan(
        checks=_predictor_checks(subject, vectors, box_predictions),
        model_with=model_with,
        default=lambda: FastRCNNPredictor(setting.channels, setting.num_classes),
        call=lambda part: part(vectors.clone()),
    )


def mask_predictor_plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.MaskPredictor``: ``[R, E, 14, 14]`` to masks of 4 classes."""
    setting = subject.setting
    hidden = noise(ROIS, setting.channels, 14, 14)

    def checks() -> Iterator[CheckResult]:
        yield from _predictor_checks(subject, hidden, mask_predictions)
        yield outcome(
            "masks of labels",
            lambda: masks_of_labels(subject.part, hidden.clone(), setting.num_classes),
        )

    return Plan(
        checks=checks(),
        model_with=lambda part: model_around(setting, mask_predictor=part, width=setting.channels),
        default=lambda: MaskRCNNPredictor(setting.channels, WIDTH, setting.num_classes),
        call=lambda part: part(hidden.clone()),
    )


def _checks(
    subject: Subject, pooled: Tensor, trailing: tuple[int | None, ...]
) -> Iterator[CheckResult]:
    yield outcome(
        "types and shapes", lambda: types_and_shapes(subject.part, pooled.clone(), trailing)
    )
    yield outcome("no RoIs", lambda: types_and_shapes(subject.part, pooled[:0], trailing))
    yield from network_checks(subject, pooled)


def _predictor_checks(subject: Subject, inputs: Tensor, predictions: Any) -> Iterator[CheckResult]:
    classes = subject.setting.num_classes
    yield outcome("types and shapes", lambda: predictions(subject.part, inputs.clone(), classes))
    yield outcome("no RoIs", lambda: predictions(subject.part, inputs[:0], classes))
    yield from network_checks(subject, inputs)


@torch.no_grad()
def types_and_shapes(part: Any, pooled: Tensor, trailing: tuple[int | None, ...]) -> str:
    """``[R, ...]`` for all RoIs and for one."""
    output = None
    for some in (pooled, pooled[:1]):
        output = part(some)
        require_tensor(output, f"output for {shapes(some)}", (len(some), *trailing))
        require_finite(output, "output")
    return shapes(output)


@torch.no_grad()
def box_predictions(part: Any, vectors: Tensor, classes: int) -> str:
    output = part(vectors)
    require(
        isinstance(output, (list, tuple)) and len(output) == 2,
        f"returns {shapes(output)}, expected (class logits, box deltas)",
    )
    require_tensor(output[0], "class logits", (len(vectors), classes))
    agnostic = isinstance(output[1], Tensor) and output[1].shape[-1] == 4
    require_tensor(output[1], "box deltas", (len(vectors), 4 if agnostic else 4 * classes))
    require_finite(output, "predictions")
    return shapes(output)


@torch.no_grad()
def mask_predictions(part: Any, hidden: Tensor, classes: int) -> str:
    output = part(hidden)
    agnostic = isinstance(output, Tensor) and output.dim() == 4 and output.shape[1] == 1
    require_tensor(output, "mask logits", (len(hidden), 1 if agnostic else classes, None, None))
    require(
        output.shape[2] == output.shape[3],
        f"masks are {output.shape[2]} x {output.shape[3]}, expected as high as wide",
    )
    require_finite(output, "mask logits")
    return shapes(output)


@torch.no_grad()
def masks_of_labels(part: Any, hidden: Tensor, classes: int) -> str:
    """With labels, the masks are those of the labels among all."""
    if not accepts_labels(part):
        raise NotApplicable("the predictor takes no labels")
    labels = torch.arange(len(hidden)) % classes
    expected = of_classes(part(hidden), torch.arange(len(hidden)), labels)
    found = part(hidden, labels)
    require_tensor(found, "masks of labels", tuple(expected.shape))
    error = relative_error(found, expected)
    require(error <= TOLERANCE, f"differ by {error:.1e} of their norm from those of all classes")
    return f"differ by {error:.0e} of their norm from those of all classes"
