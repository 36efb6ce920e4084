"""A planted mistake is found where it was planted, and checks judge by their tolerance."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.parity import report
from maskrcnn_scratch.parity.calibrate import (
    calibrated_maskrcnn,
)
from maskrcnn_scratch.parity.compare import Check, Worst, compare
from maskrcnn_scratch.parity.losses import gradient_check, loss_check
from maskrcnn_scratch.parity.model import (
    MARGIN,
    MAX_DIFFERENT,
    Agreement,
    Difference,
    model_check,
    summarize,
)
from maskrcnn_scratch.parity.photographs import photographs
from maskrcnn_scratch.parity.reference import Recording, reference_of
from maskrcnn_scratch.parity.stages import stage_checks


@pytest.fixture(scope="module")
def recorded() -> tuple[MaskRCNN, Recording, Tensor]:
    """A small calibrated model, a run of torchvision's with its weights, and their image."""
    photograph = photographs()[0]
    model = calibrated_maskrcnn(0, photograph, min_size=160, max_size=266)
    return model, Recording(reference_of(model), [photograph]), photograph


def failed_checks(recorded: tuple[MaskRCNN, Recording, Tensor]) -> list[Check]:
    model, recording, photograph = recorded
    with torch.no_grad():
        return [c for c in stage_checks(model, recording, [photograph]) if not c.passed]


@pytest.mark.slow
def test_a_divergence_is_named(
    recorded: tuple[MaskRCNN, Recording, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not failed_checks(recorded)
    monkeypatch.setattr(recorded[0].roi_heads, "box_coder", BoxCoder((10.0, 10.0, 5.0, 4.9)))
    failed = failed_checks(recorded)
    assert [check.name for check in failed] == ["detections"]
    assert "first: stages detections" in report.verdict(failed)
    assert "worst element [0]['boxes'][" in "\n".join(report.divergence(failed[0]))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["values", "positions", "half precision"])
def test_a_divergence_of_pasting_is_named(
    mistake: str, recorded: tuple[MaskRCNN, Recording, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = recorded[0].transform
    paste = transform.paste

    def mistaken(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        if mistake == "values":
            return paste(masks, boxes, size) * (1 - 2e-5)
        if mistake == "positions":  # by a ten-thousandth of a mask pixel
            return paste(masks + 1e-4 * (masks.roll(1, -1) - masks), boxes, size)
        return paste(masks.half(), boxes, size).float()

    monkeypatch.setattr(transform, "paste", mistaken)
    assert [check.name for check in failed_checks(recorded)] == ["paste, image 0"]


def test_comparisons_judge_by_their_tolerance() -> None:
    ours, theirs = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.002])
    check = compare("op", "x", {"a": ours}, {"a": theirs}, inputs={"boxes": (ours, 0), "n": 7})
    assert not check.passed
    assert check.worst == Worst("['a'][1]", 2.0, float(theirs[1]), {"boxes[1]": "2.0", "n": "7"})
    assert compare("op", "x", ours, theirs, atol=3e-3).passed
    assert not compare("op", "x", ours, theirs, rtol=9e-4).passed
    assert compare("op", "x", ours, theirs, rtol=1.1e-3).passed
    assert not compare("op", "x", ours[:1], theirs, atol=1).passed
    assert not compare("op", "x", torch.tensor([torch.nan]), torch.tensor([1.0]), atol=9).passed


def test_losses_and_gradients_judge_by_their_tolerance() -> None:
    losses = {"loss_mask": torch.tensor(2.0)}
    for factor, passed in ((1 + 5e-6, True), (1 + 2e-5, False)):
        assert (
            loss_check("x", {"loss_mask": losses["loss_mask"] * factor}, losses, 1e-5).passed
            == passed
        )
    assert not loss_check("x", {}, losses, 1e-5).passed

    models = [nn.Linear(3, 2).double() for _ in range(2)]
    for model in models:
        model.weight.grad, model.bias.grad = torch.ones(2, 3).double(), torch.ones(2).double()
    assert gradient_check("x", *models).passed
    models[0].weight.grad *= 1 + 1e-9
    check = gradient_check("x", *models)
    assert not check.passed and check.note == "weight"
    models[0].bias.grad = None
    assert "bias has a gradient in one" in gradient_check("x", *models).note


@pytest.mark.slow
def test_differences_that_features_cause_are_told_from_others(
    recorded: tuple[MaskRCNN, Recording, Tensor],
) -> None:
    model, recording, photograph = recorded
    model = copy.deepcopy(model)
    noise = torch.Generator().manual_seed(0)
    model.backbone.register_forward_hook(
        lambda _, args, found: {
            name: level * (1 + 1e-2 * torch.randn(level.shape, generator=noise))
            for name, level in found.items()
        }
    )
    _, agreement = model_check("noise", model, [photograph], recording)
    assert any("vanishes" in difference.decision for difference in agreement.differences)
    assert not agreement.unexplained()
    model.roi_heads.nms_thresh = 0.4
    _, agreement = model_check("noise and a threshold", model, [photograph], recording)
    assert agreement.unexplained()


@pytest.mark.parametrize(
    "differing, margin, holds",
    [(0, 0.0, True), (1, MARGIN / 2, True), (1, MARGIN * 2, False), (6, MARGIN / 2, False)],
)
def test_few_differences_are_allowed_and_only_at_a_close_decision(
    differing: int, margin: float, holds: bool
) -> None:
    differences = [Difference(0, "", margin, "")] * differing
    assert int(1000 * MAX_DIFFERENT) == 5
    check: Check = summarize("x", [Agreement(1000, 1e-4, 1e-6, 1e-5, differences)])
    assert check.passed == holds
