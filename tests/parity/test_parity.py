"""Every parity check passes.

The checks are those of ``maskrcnn parity``, on smaller images. One test per part, so that several
workers can share them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import FasterRCNN
from maskrcnn_scratch.parity import report, run
from maskrcnn_scratch.parity.calibrate import (
    Architecture,
    calibrate,
    random_model,
)
from maskrcnn_scratch.parity.compare import Check
from maskrcnn_scratch.parity.detectron2 import detectron2_checks
from maskrcnn_scratch.parity.half import half_checks
from maskrcnn_scratch.parity.losses import losses_checks
from maskrcnn_scratch.parity.names import PARTS, Selection, part_of
from maskrcnn_scratch.parity.ops import op_checks
from maskrcnn_scratch.parity.photographs import photographs, smaller
from maskrcnn_scratch.parity.run import (
    NORM_LAYERS,
    WEIGHT_SETS,
    Run,
    _model,
    loss_batches,
    model_checks,
    parity_checks,
    unusual_batches,
)

MIN_SIZE = 160
LONGER_SIDE = 400  # of the photographs; masks of a hundred detections take memory
# Of the training checks. Each batch is trained on twice; later steps only add rounding. Of the
# proposals that are sampled per image, up to four are positive.
LOSSES_MIN_SIZE, STEPS, SAMPLES = 96, 8, 16


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    """The photographs, large ones made smaller."""
    return [smaller(photograph, LONGER_SIDE) for photograph in photographs()]


@functools.lru_cache(1)
def model_of_weights(seed: int) -> FasterRCNN:
    """Calibrated on the first of ``images``."""
    return _model(Run(min_size=MIN_SIZE), seed, smaller(photographs()[0], LONGER_SIDE))


@pytest.fixture
def shared_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tests of the same weights share the model, which the checks leave as it is."""
    monkeypatch.setattr(run, "_model", lambda _, seed, __: model_of_weights(seed))


def assert_all_pass(checks: Iterable[Check], *levels: str) -> None:
    checks = list(checks)
    assert all(check.passed for check in checks), "\n".join(map(report.row, checks))
    assert {check.level for check in checks} == set(levels)


def test_ops() -> None:
    assert_all_pass(op_checks(torch.device("cpu")), "ops")


def test_half_precision() -> None:
    assert_all_pass(half_checks(torch.device("cpu")), "half")


def test_conventions_of_detectron2(images: list[Tensor]) -> None:
    assert_all_pass(detectron2_checks(images[0]), "detectron2")


def test_float64() -> None:
    """Few pixels and no masks: the size does not change what is compared."""
    run = Run(
        images=[smaller(photographs()[0], 96)],
        min_size=64,
        selection=Selection(("float64",)),
        architecture="fasterrcnn_resnet50_fpn",
    )
    checks = list(parity_checks(run))
    assert_all_pass(checks, "float64")
    assert [part_of(check.level, check.name) for check in checks] == [*PARTS["float64"]]
    assert "100 detections, 0 differ" in checks[0].note


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn"])
def test_other_architectures(architecture: Architecture, images: list[Tensor]) -> None:
    selection = Selection(("modules", "stages"))
    run = Run(min_size=MIN_SIZE, architecture=architecture, selection=selection)
    checks = list(model_checks(run, 0, [[images[0]]]))
    assert_all_pass(checks, "modules", "stages")
    assert any("mask" in check.name for check in checks) == architecture.startswith("mask")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_models")
@pytest.mark.parametrize("seed", WEIGHT_SETS)
def test_modules_stages_and_model(seed: int, images: list[Tensor]) -> None:
    checks = list(model_checks(Run(min_size=MIN_SIZE), seed, [[image] for image in images]))
    assert_all_pass(checks, "modules", "stages", "model")
    assert {(check.level, part_of(check.level, check.name)) for check in checks} == {
        (group, part) for group in ("modules", "stages", "model") for part in PARTS[group]
    }


@pytest.mark.slow
@pytest.mark.usefixtures("shared_models")
def test_unusual_sizes(images: list[Tensor]) -> None:
    batches = unusual_batches(images[0], MIN_SIZE)
    checks = model_checks(Run(min_size=MIN_SIZE), max(WEIGHT_SETS), batches)
    assert_all_pass(checks, "modules", "stages", "model")
    model_of_weights.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("norm_layer", NORM_LAYERS)
def test_losses_gradients_and_steps(norm_layer: type[nn.Module], images: list[Tensor]) -> None:
    checks = losses_checks(
        norm_layer, loss_batches(images), images[0], LOSSES_MIN_SIZE, STEPS, SAMPLES
    )
    assert_all_pass(checks, "losses")


@pytest.mark.slow
def test_trained_weights(tmp_path: Path) -> None:
    photograph = smaller(photographs()[0], 96)
    model = random_model("fasterrcnn_resnet50_fpn", 5)
    calibrate(model, photograph, background_logit=2.5)
    torch.save(model.state_dict(), tmp_path / "trained.pth")
    run = Run(
        images=[photograph],
        min_size=64,
        weights=tmp_path / "trained.pth",
        selection=Selection(("stages",)),
    )
    checks = list(model_checks(run, 0, [[photograph]]))
    assert_all_pass(checks, "stages")
    assert all("weights trained.pth" in check.name for check in checks)
    assert len(checks) == 6 and not any("mask" in check.name for check in checks)
