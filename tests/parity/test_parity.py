"""Every parity check passes, and a planted mistake is found where it was planted.

The checks are those of ``maskrcnn parity``, on smaller images. One test per part, so that several
workers can share them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.parity import report, run
from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
from maskrcnn_scratch.parity.compare import Check, compare
from maskrcnn_scratch.parity.losses import gradient_check, loss_check, losses_checks
from maskrcnn_scratch.parity.model import MARGIN, MAX_DIFFERENT, Agreement, Difference, summarize
from maskrcnn_scratch.parity.ops import op_checks
from maskrcnn_scratch.parity.photographs import photographs
from maskrcnn_scratch.parity.reference import Recording, reference_of
from maskrcnn_scratch.parity.run import (
    NORM_LAYERS,
    WEIGHT_SETS,
    loss_batches,
    model_checks,
    unusual_batches,
)
from maskrcnn_scratch.parity.stages import stage_checks

MIN_SIZE = 160
LONGER_SIDE = 400  # of the photographs; masks of a hundred detections take memory
# Of the training checks. Each batch is trained on twice; later steps only add rounding.
LOSSES_MIN_SIZE, STEPS = 128, 8


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    """The photographs, large ones made smaller."""
    return [smaller(photograph) for photograph in photographs()]


def smaller(image: Tensor) -> Tensor:
    factor = min(1.0, LONGER_SIDE / max(image.shape[-2:]))
    return torch.nn.functional.interpolate(image[None], scale_factor=factor, mode="area")[0]


def assert_all_pass(checks: Iterable[Check], *levels: str) -> None:
    checks = list(checks)
    assert all(check.passed for check in checks), "\n".join(map(report.row, checks))
    assert {check.level for check in checks} == set(levels)


def test_ops() -> None:
    assert_all_pass(op_checks(torch.device("cpu")), "op")


@pytest.mark.parametrize("seed", WEIGHT_SETS)
def test_modules_stages_and_model(seed: int, images: list[Tensor]) -> None:
    checks = model_checks(seed, [[image] for image in images], MIN_SIZE)
    assert_all_pass(checks, "module", "stage", "model")


def test_unusual_sizes(images: list[Tensor]) -> None:
    batches = unusual_batches(images[0], MIN_SIZE)
    assert_all_pass(model_checks(max(WEIGHT_SETS), batches, MIN_SIZE), "module", "stage", "model")


@pytest.mark.parametrize("norm_layer", NORM_LAYERS)
def test_losses_gradients_and_steps(norm_layer: type[nn.Module], images: list[Tensor]) -> None:
    checks = losses_checks(norm_layer, loss_batches(images), images[0], LOSSES_MIN_SIZE, STEPS)
    assert_all_pass(checks, "losses")


def test_command_prints_writes_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [
        Check("op", "nms", 0.0, 0.0, "equal", True),
        Check("stage", "x", 1, 1, "equal", False),
    ]
    arguments = ["parity", "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    for made, status in ((checks[:1], 0), (checks, 1)):
        monkeypatch.setattr(run, "parity_checks", lambda *_, made=made: iter(made))
        assert main(arguments) == status
        assert [one["name"] for one in json.loads((tmp_path / "a.json").read_text())] == [
            check.name for check in made
        ]
        assert "| op | nms | 0 | equal |" in (tmp_path / "a.md").read_text()
    assert "1 of 2 checks fail, first: stage x" in capsys.readouterr().out


def test_all_parts_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """``maskrcnn parity`` makes the checks that the tests above make one by one."""
    made: list[object] = []
    record = lambda *arguments: made.append(arguments) or iter(())
    for name in ("op_checks", "model_checks", "losses_checks"):
        monkeypatch.setattr(run, name, record)
    list(run.parity_checks(torch.device("cpu"), None, MIN_SIZE))
    assert len(made) == 1 + len(WEIGHT_SETS) + len(NORM_LAYERS)
    assert [len(batches) for seed, batches, _ in made[1:4]] == [8, 8, 10]


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


def test_a_divergence_is_named(
    recorded: tuple[MaskRCNN, Recording, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not failed_checks(recorded)
    monkeypatch.setattr(recorded[0].roi_heads, "box_coder", BoxCoder((10.0, 10.0, 5.0, 4.9)))
    failed = failed_checks(recorded)
    assert [check.name for check in failed] == ["detections"]
    assert "first: stage detections" in report.verdict(failed)


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
    assert not compare("op", "x", ours, theirs).passed
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
