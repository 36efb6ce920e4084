"""The benchmark reports what it cannot time in the row where the time would be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tools import benchmark
from tools.benchmark import as_json, markdown, row
from tools.benchmarks import memory, peers
from tools.benchmarks.clock import Clock
from tools.benchmarks.peers import time_peer


def not_installed() -> Callable[[], object]:
    raise ModuleNotFoundError("No module named 'openvino'", name="openvino")


def cannot_export() -> Callable[[], object]:
    raise ImportError("exporting to ONNX needs onnx")


def cannot_run() -> Callable[[], object]:
    raise RuntimeError("no kernel for Resize\nat line 3")


@pytest.mark.parametrize(
    "load, reason",
    [
        (not_installed, "openvino is not installed"),
        (cannot_export, "exporting to ONNX needs onnx"),
        (cannot_run, "no kernel for Resize"),
    ],
)
def test_a_peer_that_cannot_run_has_a_row(
    load: Callable[[], Callable[[], object]], reason: str
) -> None:
    timing = time_peer(Clock(torch.device("cpu"), 0.0), "peers", "backbone", lambda: None, load)
    assert timing.name == f"backbone: {reason}"
    assert reason in row(timing) and reason in markdown({}, [timing])
    assert "nan" not in row(timing) + markdown({}, [timing])
    assert json.loads(json.dumps(as_json(timing), allow_nan=False))["ratio"] is None


def test_without_onnx_every_peer_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object, **__: object) -> None:
        raise ImportError("exporting to ONNX needs onnx")

    model: Any = SimpleNamespace(
        transform=lambda images: (SimpleNamespace(tensors=images[0][None]), None),
        backbone=torch.nn.Identity(),
    )
    monkeypatch.setattr(peers, "optimize", lambda model, **_: model)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(peers, "export_onnx", export)
    monkeypatch.setattr(torch.onnx, "export", export)
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)  # as if not installed
    clock = Clock(torch.device("cpu"), 0.0)
    rows = [timing.name for timing in peers.time_peers(clock, model, torch.zeros(3, 4, 4))]
    assert [row.partition(", ")[2] for row in rows] == [
        "compiled, against onnxruntime: onnxruntime is not installed",
        "Winograd, against onnxruntime: onnxruntime is not installed",
        "compiled, against onnxruntime: onnxruntime is not installed",
        "compiled, against OpenVINO: openvino is not installed",
        "Winograd, against OpenVINO: openvino is not installed",
        "compiled, against OpenVINO: openvino is not installed",
        "compiled, against OpenVINO: openvino is not installed",
    ]
    runtime = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=None)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    first = next(peers.time_peers(clock, model, torch.zeros(3, 4, 4)))
    assert first.name.endswith("onnxruntime: exporting to ONNX needs onnx")


def test_files_have_what_was_measured_without_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = {"40 x 50": {"torchvision": 80.4, "ours": "not enough memory"}}
    monkeypatch.setattr(benchmark, "describe", lambda clock: {"device": "a CPU"})
    monkeypatch.setattr(benchmark, "measure_memory", lambda sizes: peaks.items())
    files = tmp_path / "m.json", tmp_path / "m.md"
    benchmark.main(["memory", "--json", str(files[0]), "--markdown", str(files[1])])
    line = "peak memory, 40 x 50: torchvision 80 MiB, ours not enough memory"
    assert line in capsys.readouterr().out.splitlines()
    assert json.loads(files[0].read_text())["peak memory in MiB"] == peaks
    assert files[1].read_text() == f"{line}\n\ndevice: a CPU\n"


def test_a_peer_that_runs_is_timed() -> None:
    timing = time_peer(
        Clock(torch.device("cpu"), 0.0), "peers", "backbone", lambda: 1, lambda: lambda: 2
    )
    assert timing.name == "backbone" and timing.ratio > 0
    assert as_json(timing)["ratio"] == timing.ratio


@pytest.mark.parametrize(
    "errors, reason",
    [
        ("Traceback\nRuntimeError: [enforce fail] DefaultCPUAllocator: not enough memory: 9\n",
         "not enough memory"),
        ("Traceback\nAssertionError: 3 masks\n", "AssertionError: 3 masks"),
        ("", "exit status -1"),
    ],
)  # fmt: skip
def test_memory_of_sides_that_are_not_installed_or_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], errors: str, reason: str
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1 - len(commands), "343", errors)

    monkeypatch.setattr(memory, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(
        sys,
        "argv",
        ["memory", "--image-size", "40", "50", "--batch-size", "2", "--detections", "7"],
    )
    memory.main()
    assert capsys.readouterr().out.splitlines() == [
        "torchvision: is not installed",
        "ours: 343 MiB",
        f"ours, masks as RLE: {reason}",
    ]
    assert [command[-4:] for command in commands] == [["40", "50", "2", "7"]] * 2
