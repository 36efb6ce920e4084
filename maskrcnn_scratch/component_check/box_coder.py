"""Checks of a box coder. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.component_check.common import part_checks, require_finite, require_tensor
from maskrcnn_scratch.component_check.host import model_around
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import Subject, random_boxes
from maskrcnn_scratch.ops.boxes import BoxCoder

PAIRS = 50  # R
INVERSE_TOLERANCE = 1e-2  # pixels, in an image of 1333; float32 rounds to 1e-4


def plan(subject: Subject) -> Plan:
    """A plan for a box coder, which has the methods of ``ops.boxes.BoxCoder``."""
    boxes, references = random_boxes(PAIRS, 1333), random_boxes(PAIRS, 1333, seed=1)

    def model_with(part: Any) -> Any:
        model = model_around(subject.setting)
        model.rpn.box_coder = model.roi_heads.box_coder = part
        return model

    return Plan(
        checks=_checks(subject, boxes, references),
        model_with=model_with,
        default=lambda: BoxCoder((1.0, 1.0, 1.0, 1.0)),
        call=lambda part: encode_and_decode(part, boxes, references),
    )


def encode_and_decode(part: Any, boxes: Tensor, references: Tensor) -> list[Tensor]:
    deltas = part.encode(boxes, references)
    return [deltas, part.decode(deltas, references)]


def _checks(subject: Subject, boxes: Tensor, references: Tensor) -> Iterator[CheckResult]:
    part, fresh = subject.part, (boxes.clone(), references.clone())
    yield outcome("types and shapes", lambda: types_and_shapes(part, boxes, references))
    yield outcome("decode(encode) = identity", lambda: inverse(part, boxes, references))
    yield outcome("no boxes", lambda: no_boxes(part, boxes))
    yield outcome("value range", lambda: extreme_deltas(part, references))
    yield outcome("gradient", lambda: gradient(part, references))
    yield from part_checks(subject, encode_and_decode, *fresh)


def types_and_shapes(part: Any, boxes: Tensor, references: Tensor) -> str:
    """``[R, 4]`` and batches ``[N, R, 4]``, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        for shape in ((PAIRS, 4), (2, PAIRS // 2, 4)):
            given = boxes.reshape(shape).to(dtype), references.reshape(shape).to(dtype)
            deltas = part.encode(*given)
            require_tensor(deltas, "encode(boxes, references)", shape, dtype)
            decoded = part.decode(deltas, given[1])
            require_tensor(decoded, "decode(deltas, references)", shape, dtype)
    return "[R, 4] and [N, R, 4]"


def inverse(part: Any, boxes: Tensor, references: Tensor) -> str:
    decoded = part.decode(part.encode(boxes, references), references)
    error = (decoded - boxes).abs().nan_to_num(torch.inf).amax(1)  # [R]
    worst = int(error.argmax())
    require(
        float(error[worst]) <= INVERSE_TOLERANCE,
        f"box {_numbers(boxes[worst])} becomes {_numbers(decoded[worst])} relative to "
        f"{_numbers(references[worst])}",
    )
    return f"within {float(error[worst]):.0e} pixels"


def no_boxes(part: Any, boxes: Tensor) -> str:
    empty = boxes[:0]
    require_tensor(part.encode(empty, empty), "encode of no boxes", (0, 4))
    require_tensor(part.decode(empty, empty), "decode of no deltas", (0, 4))
    return ""


def extreme_deltas(part: Any, references: Tensor) -> str:
    """Wild predictions, and references of zeros, which are padding, decode to finite boxes."""
    for value in (100.0, -100.0):
        decoded = part.decode(torch.full_like(references, value), references)
        require_finite(decoded, f"decode of deltas of {value:.0f}")
    padding = torch.zeros_like(references)
    require_finite(part.decode(torch.ones_like(references), padding), "references of zeros")
    return "deltas of 100 and -100 give finite boxes"


def gradient(part: Any, references: Tensor) -> str:
    """Losses on decoded boxes, such as GIoU, need a gradient."""
    deltas = torch.full_like(references, 0.1).requires_grad_()
    part.decode(deltas, references).sum().backward()
    require(deltas.grad is not None, "no gradient reaches the deltas")
    require_finite(deltas.grad, "the gradient of the deltas")
    return "reaches the deltas"


def _numbers(values: Tensor) -> list[float]:
    return [round(value, 1) for value in values.tolist()]
