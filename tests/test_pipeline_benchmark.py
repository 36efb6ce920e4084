"""The benchmark from files to files runs, and reports a peer that is not installed."""

from __future__ import annotations

import sys

import pytest
import torch

from maskrcnn_scratch.builders.small import small_maskrcnn
from tools.benchmark import row
from tools.benchmarks import pipeline
from tools.benchmarks.clock import Clock, Timing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def timings() -> list[Timing]:
    torch.manual_seed(0)
    model = small_maskrcnn(91, min_size=64, max_size=96).eval()
    model.roi_heads.detections_per_img = 5
    image = torch.rand(3, 64, 96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "reference_of", lambda model: model)  # takes the same calls
        patch.setattr(pipeline, "WORKERS", 0)
        patch.setitem(sys.modules, "pycocotools", None)
        clock = Clock(torch.device("cpu"), 0.0, least=1)
        return list(pipeline.time_pipeline(clock, model, image, photographs=2, steps=1))


def test_every_stage_has_its_rows(timings: list[Timing]) -> None:
    titles = [timing.name for timing in timings if timing.ratio > 0]
    assert titles == [
        "predict, 2 photographs, beside the model alone",
        "predict, 2 photographs",
        "predict --winograd, 2 photographs, beside the model alone",
        "predict --winograd, 2 photographs",
        "evaluate, 2 photographs, beside the model alone",
        "train, 1 steps, beside the steps alone",
        "train, 1 steps",
    ]


def test_a_missing_peer_has_a_row(timings: list[Timing]) -> None:
    (missing,) = (timing for timing in timings if timing.ratio != timing.ratio)
    assert missing.name == "evaluate, 2 photographs: pycocotools is not installed"
    assert missing.name in row(missing)
