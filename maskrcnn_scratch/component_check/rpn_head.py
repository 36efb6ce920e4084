"""Checks of an RPN head. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.component_check.common import network_checks, require_finite, require_tensor
from maskrcnn_scratch.component_check.host import feature_maps, model_around
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import Subject, shapes
from maskrcnn_scratch.rpn import RPNHead


def plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.RPNHead``."""
    setting = subject.setting

    def maps() -> list[Tensor]:
        return list(feature_maps(setting).values())

    @torch.no_grad()
    def anchors(part: Any) -> int:
        return part(maps())[0][0].shape[1]

    return Plan(
        checks=_checks(subject, maps),
        model_with=lambda part: model_around(setting, rpn_head=part, anchors=anchors(part)),
        default=lambda: RPNHead(setting.channels, anchors(subject.part)),
        call=lambda part: part(maps()),
    )


def _checks(subject: Subject, maps: Callable[[], list[Tensor]]) -> Iterator[CheckResult]:
    yield outcome("types and shapes", lambda: types_and_shapes(subject.part, maps()))
    yield from network_checks(subject, maps())


@torch.no_grad()
def types_and_shapes(part: Any, maps: list[Tensor]) -> str:
    """Two sizes, batches of 1 and 3."""
    anchors = None
    transposed = [level.transpose(2, 3).contiguous() for level in maps]
    for levels in (maps, [level[:1] for level in maps], transposed):
        output = part(levels)
        require(
            isinstance(output, (list, tuple)) and len(output) == 2,
            f"returns {shapes(output)}, expected (objectness per level, deltas per level)",
        )
        objectness, deltas = output
        for name, values in (("objectness", objectness), ("deltas", deltas)):
            require(
                isinstance(values, (list, tuple)) and len(values) == len(levels),
                f"{len(levels)} maps give {name} {shapes(values)}, expected one tensor per level",
            )
        for number, level in enumerate(levels):
            batch, _, height, width = level.shape
            logits = objectness[number]
            require_tensor(logits, f"objectness of level {number}", (batch, None, height, width))
            if anchors is None:
                anchors = logits.shape[1]
            require(
                logits.shape[1] == anchors,
                f"level {number} has {logits.shape[1]} anchors per location, level 0 has {anchors}",
            )
            require_tensor(
                deltas[number], f"deltas of level {number}", (batch, 4 * anchors, height, width)
            )
        require_finite(output, "predictions")
    return f"{anchors} anchors per location on {len(maps)} levels"
