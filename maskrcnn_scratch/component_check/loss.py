"""Checks of a loss. Shapes: see ``structures``; here ``B`` sampled boxes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from maskrcnn_scratch import losses
from maskrcnn_scratch.call_part import with_context
from maskrcnn_scratch.component_check.common import part_checks, require_finite, require_tensor
from maskrcnn_scratch.component_check.host import model_around
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import (
    LossName,
    Setting,
    Subject,
    noise,
    random_boxes,
)
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.structures import IGNORE_LABEL

SAMPLES = 40  # B
MASK_SIDE = 28  # M
BOXES_SIDE = 256  # pixels: anchors and proposals are in this square
OF_BOXES = ("loss_rpn_box_reg", "loss_box_reg")
FIRST_PARAMETERS: dict[str, LossName] = {
    "objectness": "loss_objectness",
    "pred_bbox_deltas": "loss_rpn_box_reg",
    "class_logits": "loss_classifier",
    "box_regression": "loss_box_reg",
    "mask_logits": "loss_mask",
}


class UnknownLossError(ValueError):
    """Nothing tells which loss the part replaces."""


class Arguments(NamedTuple):
    """What the model passes to a loss."""

    predictions: Tensor
    labels: Tensor
    targets: Tensor | None

    def call(self, part: Any) -> Tensor:
        return call(part, *self.given())

    def given(self) -> tuple[Tensor, ...]:
        return tuple(value for value in self if value is not None)


def call(part: Any, *given: Tensor) -> Tensor:
    """``part(*given)``, with boxes and a box coder if it asks for them."""
    boxes = random_boxes(len(given[0]), BOXES_SIDE)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    return with_context(part, anchors=boxes, proposals=boxes, box_coder=coder)(*given)


def plan(subject: Subject) -> Plan:
    """A plan for a replacement of one of the functions in ``losses``.

    Raises:
        UnknownLossError: neither the setting nor the part tells which one.
    """
    name = subject.setting.loss or loss_name(subject.part)

    def model_with(part: Any) -> Any:
        model = model_around(subject.setting)
        rpn = name in ("loss_objectness", "loss_rpn_box_reg")
        setattr(model.rpn if rpn else model.roi_heads, name, part)
        return model

    usual = arguments(name, subject.setting)
    return Plan(
        checks=_checks(subject, name),
        model_with=model_with,
        default=lambda: getattr(losses, name),
        call=usual.call,
        training_only=True,
    )


def loss_name(part: Any) -> LossName:
    """Which loss the part replaces, by its own name or that of its first parameter."""
    own = getattr(getattr(part, "func", part), "__name__", "")
    for known in get_args(LossName):
        if own == known:
            return known
    first = next(iter(inspect.signature(getattr(part, "forward", part)).parameters), "")
    if first in FIRST_PARAMETERS:
        return FIRST_PARAMETERS[first]
    raise UnknownLossError(
        f"the first parameter of the loss is {first!r}: say with --loss which one it replaces, "
        f"{', '.join(get_args(LossName))}"
    )


def arguments(name: LossName, setting: Setting, count: int = SAMPLES) -> Arguments:
    """Predictions and targets of ``count`` boxes: objects, background and ignored ones."""
    classes = setting.num_classes
    labels = torch.arange(count) % 4 - 1  # IGNORE_LABEL, background, two classes
    predictions = {
        "loss_objectness": noise(count),
        "loss_rpn_box_reg": noise(count, 4),
        "loss_classifier": noise(count, classes),
        "loss_box_reg": noise(count, classes * 4),
        "loss_mask": noise(count, classes, MASK_SIDE, MASK_SIDE),
    }[name]
    targets = None
    if name in OF_BOXES:
        targets = noise(count, 4, seed=1)
    if name == "loss_mask":
        labels = torch.where(labels == 0, 1, labels)  # never background
        targets = (noise(count, MASK_SIDE, MASK_SIDE, seed=1) > 0).float()
    if name in ("loss_objectness", "loss_rpn_box_reg"):
        labels = labels.clamp(max=1).float()
    return Arguments(predictions, labels, targets)


def _checks(subject: Subject, name: LossName) -> Iterator[CheckResult]:
    part, setting = subject.part, subject.setting
    usual = arguments(name, setting)
    ignored = usual._replace(labels=torch.full_like(usual.labels, IGNORE_LABEL))
    background = usual._replace(labels=torch.zeros_like(usual.labels))
    yield outcome("types and shapes", lambda: scalar(part, usual, name))
    yield outcome("gradient", lambda: gradient(part, usual))
    yield outcome("all ignored", lambda: nothing_takes_part(part, ignored))
    yield outcome("no boxes", lambda: finite(part, arguments(name, setting, 0)))
    if name != "loss_mask":
        yield outcome("zero objects", lambda: finite(part, background))
    yield outcome("ignored boxes", lambda: ignored_boxes(part, usual))
    if name in OF_BOXES:
        yield outcome("infinite targets of background", lambda: unused_targets(part, usual))
    else:
        yield outcome("large logits", lambda: large_logits(part, usual))
    yield outcome("better is lower", lambda: better_is_lower(part, usual, name))
    yield from part_checks(subject, call, *arguments(name, setting).given())


def scalar(part: Any, given: Arguments, name: str) -> str:
    loss = given.call(part)
    require_tensor(loss, name, ())
    require_finite(loss, name)
    return f"{name} {loss.item():.3f}"


def gradient(part: Any, given: Arguments) -> str:
    found = _gradient(part, given)
    require(bool(found.any()), "the gradient of the predictions is zero")
    return f"norm {float(found.norm()):.2g}"


def finite(part: Any, given: Arguments) -> str:
    """Finite, with a gradient (which may be zero), so that every process of DDP has one."""
    require_finite(_gradient(part, given), "the gradient of the predictions")
    return f"loss {given.call(part).item():.3f}"


def nothing_takes_part(part: Any, given: Arguments) -> str:
    found = _gradient(part, given)
    require(not bool(found.any()), "boxes with IGNORE_LABEL have a gradient")
    return finite(part, given)


def ignored_boxes(part: Any, given: Arguments) -> str:
    """Their predictions have no gradient."""
    found = _gradient(part, given)[given.labels == IGNORE_LABEL]
    require(
        not bool(found.any()),
        f"boxes with IGNORE_LABEL have a gradient of up to {found.abs().max():.2g}",
    )
    return "have no gradient"


def unused_targets(part: Any, given: Arguments) -> str:
    """Regression targets are meaningful for objects only: those of others may be infinite."""
    assert given.targets is not None
    targets = given.targets.masked_fill((given.labels < 1)[:, None], torch.inf)
    return finite(part, given._replace(targets=targets))


def large_logits(part: Any, given: Arguments) -> str:
    return finite(part, given._replace(predictions=given.predictions * 1000))


def better_is_lower(part: Any, given: Arguments, name: LossName) -> str:
    """Predictions that agree with the targets have a lower loss than their opposite."""
    right, wrong = (
        float(given._replace(predictions=sign * _perfect(given, name)).call(part))
        for sign in (1.0, -1.0)
    )
    require(right < wrong, f"loss {right:.3g} for right predictions, {wrong:.3g} for wrong ones")
    return f"{right:.3g} for right predictions, {wrong:.3g} for wrong ones"


def _perfect(given: Arguments, name: LossName) -> Tensor:
    """Predictions that agree with labels and targets."""
    rows = torch.arange(len(given.labels))
    labels = given.labels.long().clamp(min=0)
    predictions = torch.zeros_like(given.predictions)
    build: dict[str, Callable[[], Tensor]] = {
        "loss_objectness": lambda: given.labels * 10 - 5,
        "loss_rpn_box_reg": lambda: _targets(given),
        "loss_classifier": lambda: predictions.index_put((rows, labels), torch.tensor(5.0)),
        "loss_box_reg": lambda: _targets(given).repeat(1, given.predictions.shape[1] // 4),
        "loss_mask": lambda: (10 * _targets(given) - 5)[:, None].expand_as(predictions),
    }
    return build[name]()


def _targets(given: Arguments) -> Tensor:
    assert given.targets is not None
    return given.targets


def _gradient(part: Any, given: Arguments) -> Tensor:
    """Of the predictions; raises ``CheckFailed`` if there is none, or one that is not finite."""
    predictions = given.predictions.clone().requires_grad_()
    loss = given._replace(predictions=predictions).call(part)
    require_finite(loss, f"the loss is {loss.item()}")
    require(loss.requires_grad, "the loss has no gradient: it does not depend on the predictions")
    loss.backward()
    require(predictions.grad is not None, "no gradient reaches the predictions")
    assert predictions.grad is not None
    require_finite(predictions.grad, "the gradient of the predictions")
    return predictions.grad
