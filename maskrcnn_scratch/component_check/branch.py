"""Checks of a further branch of the RoI heads. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.component_check.common import require_finite, require_tensor
from maskrcnn_scratch.component_check.host import images_and_targets, model_around
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import Subject, shapes
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN

NAME = "branch"


def plan(subject: Subject) -> Plan:
    """A plan for ``stage_interfaces.Branch``; it is called inside of the small model only."""

    def model_with(part: Any) -> GeneralizedRCNN:
        return model_around(subject.setting, branches={NAME: part})

    return Plan(checks=_checks(subject, model_with), model_with=model_with)


def _checks(subject: Subject, model_with: Any) -> Iterator[CheckResult]:
    side, classes = subject.setting.side, subject.setting.num_classes
    model: list[GeneralizedRCNN] = []

    def build() -> str:
        for name in ("losses", "detect"):
            require(
                hasattr(subject.part, name), f"has no method {name}: see stage_interfaces.Branch"
            )
        model.append(model_with(subject.part))
        model[0].roi_heads.score_thresh = 0.0  # detections to work on
        images, _ = images_and_targets(3, side, classes)
        return outputs(model[0], images)

    yield outcome("types and shapes", build)
    yield outcome("no detections", lambda: no_detections(model[0], side))
    yield outcome("losses of its own", lambda: own_losses(model[0], side, classes))


@torch.no_grad()
def outputs(model: GeneralizedRCNN, images: list[Tensor]) -> str:
    """Float or integer ``[N, D, ...]`` by name, in batches of 1 and 3, finite where valid."""
    for batch in (images[:1], images):
        stages = model.run_stages(batch)
        valid = stages.detections.valid
        for name, value in stages.branch_outputs.items():
            require(isinstance(value, Tensor), f"{name!r} is {shapes(value)}, expected a tensor")
            require_finite(value[valid], f"output {name!r}")
        for result in stages.results:
            for name in stages.branch_outputs:
                require(name in result, f"postprocess loses {name!r}")
                count = len(result["scores"])
                require(
                    len(result[name]) == count,
                    f"{name!r} of an image has {len(result[name])} entries for {count} detections",
                )
    branch: Any = model.roi_heads.branches[NAME]
    given = (stages.features, stages.detections, stages.images.padded_size)
    require(bool(branch.detect(*given)), "detect returns no outputs")
    return shapes(stages.branch_outputs)


@torch.no_grad()
def no_detections(model: GeneralizedRCNN, side: int) -> str:
    """Outputs have no entries where nothing was detected."""
    before, model.roi_heads.score_thresh = model.roi_heads.score_thresh, 2.0
    try:
        stages = model.run_stages([torch.zeros(3, side, side)])
    finally:
        model.roi_heads.score_thresh = before
    for name in stages.branch_outputs:
        found = len(stages.results[0][name])
        require(found == 0, f"{name!r} has {found} entries for no detections")
    return ""


def own_losses(model: GeneralizedRCNN, side: int, classes: int) -> str:
    """At least one loss, a scalar with a gradient; ``model: losses`` checks the values."""
    images, targets = images_and_targets(2, side, classes)
    others = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    losses = {k: v for k, v in model.losses(images, targets).items() if k not in others}
    require(bool(losses), "losses returns none")
    for name, loss in losses.items():
        require_tensor(loss, name, ())
    return ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
