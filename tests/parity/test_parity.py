"""Every parity check passes, and a planted mistake is found where it was planted.

Images are smaller than those of ``maskrcnn parity``, which makes the same checks.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.parity import report
from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
from maskrcnn_scratch.parity.compare import Check, compare
from maskrcnn_scratch.parity.model import MARGIN, MOST_FLIPS, Agreement, Difference, summarize
from maskrcnn_scratch.parity.photographs import photographs
from maskrcnn_scratch.parity.reference import Recording, reference_of
from maskrcnn_scratch.parity.stages import stage_checks


@pytest.mark.timeout(1200)
def test_every_check_passes(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["parity", "--min-size", "256"])
    table = capsys.readouterr().out
    assert status == 0, table
    for level in report.LEVELS:
        assert f"ok   {level} " in table


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


@pytest.mark.parametrize(
    "differing, margin, holds",
    [(0, 0.0, True), (1, MARGIN / 2, True), (1, MARGIN * 2, False), (6, MARGIN / 2, False)],
)
def test_few_differences_are_allowed_and_only_at_a_hair(
    differing: int, margin: float, holds: bool
) -> None:
    differences = [Difference(0, "", margin, "")] * differing
    assert int(1000 * MOST_FLIPS) == 5
    check: Check = summarize("x", [Agreement(1000, 1e-4, 1e-6, 1e-5, differences)])
    assert check.passed == holds
