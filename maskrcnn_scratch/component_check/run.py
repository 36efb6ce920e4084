"""All checks of one part, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from maskrcnn_scratch.component_check import (
    anchor_generator,
    backbone,
    box_coder,
    branch,
    heads,
    loss,
    matcher,
    model,
    nms,
    roi_align,
    rpn_head,
    sampler,
)
from maskrcnn_scratch.component_check.capabilities import capabilities
from maskrcnn_scratch.component_check.in_model import loss_falls, model_checks
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, describe, outcome
from maskrcnn_scratch.component_check.speed import speed_and_memory
from maskrcnn_scratch.component_check.subject import Setting, Subject
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.user_code import PartNotFoundError, build_part, find_part

Kind: TypeAlias = Literal[
    "backbone", "anchor_generator", "rpn_head", "nms", "roi_align", "matcher", "sampler",
    "box_coder", "loss", "box_head", "box_predictor", "mask_head", "mask_predictor", "branch",
    "model",
]  # fmt: skip

PLANS: dict[Kind, Callable[[Subject], Plan]] = {
    "backbone": backbone.plan,
    "anchor_generator": anchor_generator.plan,
    "rpn_head": rpn_head.plan,
    "nms": nms.plan,
    "roi_align": roi_align.plan,
    "matcher": matcher.plan,
    "sampler": sampler.plan,
    "box_coder": box_coder.plan,
    "loss": loss.plan,
    "box_head": heads.box_head_plan,
    "box_predictor": heads.box_predictor_plan,
    "mask_head": heads.mask_head_plan,
    "mask_predictor": heads.mask_predictor_plan,
    "branch": branch.plan,
    "model": model.plan,
}


def check_reference(
    reference: str,
    kind: Kind,
    arguments: Mapping[str, Any],
    setting: Setting,
    *,
    train: bool = False,
    quick: bool = False,
) -> Iterator[CheckResult]:
    """``check_part`` of the part that ``file.py:Name`` names; see ``load``.

    Raises:
        PartNotFoundError: there is no such file or name.
        UnknownLossError: see ``check_part``.
    """
    try:
        found = find_part(reference)
    except PartNotFoundError:
        raise
    except (Exception, SystemExit) as error:
        yield CheckResult("import", "FAIL", describe(error))
        return
    yield from check_part(
        lambda: build_part(found, arguments), kind, setting, train=train, quick=quick
    )


def check_part(
    build: Callable[[], Any],
    kind: Kind,
    setting: Setting | None = None,
    *,
    train: bool = False,
    quick: bool = False,
) -> Iterator[CheckResult]:
    """Yields the result of each check of the part that ``build`` makes, alone and in a small model.

    Args:
        build: is called for each part that a check needs.
        kind: what the part is.
        setting: sizes of the inputs.
        train: whether to train for 50 steps.
        quick: whether to skip capabilities that take longer than a second.

    Raises:
        UnknownLossError: a loss, and nothing tells which one it replaces.
    """
    setting = setting or Setting()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            subject = Subject(build, setting)
        except Exception as error:
            yield CheckResult("construction", "FAIL", describe(error))
            return
    plan = PLANS[kind](subject)
    for position, result in enumerate(plan.checks):
        yield result
        if position == 0 and result.status == "FAIL":
            yield CheckResult("all others", "not applicable", f"they need {result.name}")
            return
    yield from _checks_in_model(subject, plan, train=train, quick=quick)


def _checks_in_model(
    subject: Subject, plan: Plan, *, train: bool, quick: bool
) -> Iterator[CheckResult]:
    side = subject.setting.side
    built: list[GeneralizedRCNN] = []

    def build_model(part: Any) -> GeneralizedRCNN:
        model = plan.model_with(part)
        model.eval().run_stages([torch.zeros(3, side, side)])
        return model

    def build_once() -> str:
        built.append(build_model(subject.part))
        return "the parts fit together"

    result = outcome("model: built", build_once)
    yield result
    if result.status == "FAIL":
        yield CheckResult("all others", "not applicable", f"they need {result.name}")
        return
    yield from model_checks(built[0], side, subject.part)
    if train:
        yield outcome("training", lambda: loss_falls(lambda: build_model(subject.copy()), side))
    else:
        yield CheckResult("training", "not applicable", "not asked for (--train)")
    if plan.default is not None and plan.call is not None:
        default, call = plan.default(), plan.call
        if isinstance(default, nn.Module):
            default.eval()
        yield outcome("speed and memory", lambda: speed_and_memory(subject.part, default, call))
    yield from capabilities(built[0], side, training_only=plan.training_only, quick=quick)
