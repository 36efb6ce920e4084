"""The benchmark reports what it cannot time in the row where the time would be."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from tools.benchmark import as_json, markdown, row
from tools.benchmarks.clock import Clock
from tools.benchmarks.peers import time_peer


def not_installed() -> Callable[[], object]:
    raise ModuleNotFoundError("No module named 'openvino'", name="openvino")


def cannot_run() -> Callable[[], object]:
    raise RuntimeError("no kernel for Resize\nat line 3")


@pytest.mark.parametrize(
    "load, reason",
    [(not_installed, "openvino is not installed"), (cannot_run, "no kernel for Resize")],
)
def test_a_peer_that_cannot_run_has_a_row(
    load: Callable[[], Callable[[], object]], reason: str
) -> None:
    timing = time_peer(Clock(torch.device("cpu"), 0.0), "peers", "backbone", lambda: None, load)
    assert timing.name == f"backbone: {reason}"
    assert reason in row(timing) and reason in markdown({}, [timing])
    assert json.loads(json.dumps(as_json(timing), allow_nan=False))["ratio"] is None


def test_a_peer_that_runs_is_timed() -> None:
    timing = time_peer(
        Clock(torch.device("cpu"), 0.0), "peers", "backbone", lambda: 1, lambda: lambda: 2
    )
    assert timing.name == "backbone" and timing.ratio > 0
    assert as_json(timing)["ratio"] == timing.ratio
