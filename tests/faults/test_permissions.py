"""Folders that may not be written, and files that may not be read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from maskrcnn_scratch.cli import FAILURE
from maskrcnn_scratch.cli import main as maskrcnn
from tests.faults import kills
from tests.permissions import permissions_apply
from tests.training import toy


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    kills.prepare(folder)
    return folder


@pytest.fixture
def inputs(prepared: Path, tmp_path: Path) -> Path:
    """A copy, whose permissions may be changed."""
    return shutil.copytree(prepared, tmp_path / "inputs")


def run(*arguments: object) -> int:
    return maskrcnn([str(argument) for argument in arguments])


JOBS: dict[str, Callable[[Path, Path], list[object]]] = {
    "evaluate": lambda inputs, output: [
        "evaluate", "--annotations", *(inputs / "images").glob("*.json"), "--weights",
        inputs / "weights.pt", "--json", output / "scores.json", "--num-workers", 0],
    "predict": lambda inputs, output: [
        "predict", inputs / "images", "--weights", inputs / "weights.pt", "--out", output / "out",
        "--format", "json", "png", "--score-threshold", 0],
    "train": lambda inputs, output: [
        "train", "--train-annotations", *(inputs / "images").glob("*.json"), "--output",
        output / "run", "--weights", inputs / "weights.pt", "--epochs", 1, "--num-workers", 0],
    "export": lambda inputs, output: [
        "export", output / "model.pt2", "--weights", inputs / "weights.pt", "--format", "pt2",
        "--image-size", 64, 64],
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_read_only_folder(
    job: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    output.mkdir(mode=0o555)
    with permissions_apply(tmp_path):
        assert run(*JOBS[job](inputs, output)) == FAILURE
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "ermission denied" in line]
    assert str(output) in line
    assert not list(output.iterdir())


def test_a_run_in_a_read_only_folder(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir(mode=0o555)
    with permissions_apply(tmp_path), pytest.raises(PermissionError, match=str(output)):
        toy.main(output / "run")
    assert not list(output.iterdir())


@pytest.mark.parametrize(
    "job, what",
    [(job, "weights.pt") for job in JOBS]
    + [(job, "images") for job in ("evaluate", "predict", "train")],
)
def test_unreadable_weights_or_folder(
    job: str, what: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    arguments = JOBS[job](inputs, output)
    (inputs / what).chmod(0)
    try:
        with permissions_apply(tmp_path):
            assert run(*arguments) == FAILURE
    finally:
        (inputs / what).chmod(0o700)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "ermission denied" in line]
    assert str(inputs / what) in line


@pytest.mark.parametrize("job", ["predict", "train"])
def test_an_unreadable_folder_among_others(
    job: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images would be missing without a word."""
    folder = shutil.copytree(inputs / "images", tmp_path / "data")
    arguments = ["predict", folder, "--weights", inputs / "weights.pt", "--out", tmp_path / "out"]
    if job == "train":  # in the layout of YOLO
        next(folder.glob("*.json")).unlink()
        for image in folder.iterdir():
            image.with_suffix(".txt").write_text("0 .5 .5 .5 .5\n")
        arguments = ["train", "--train-annotations", folder, "--output", tmp_path / "run"]
    secret = folder / "more"
    secret.mkdir(mode=0)
    with permissions_apply(tmp_path):
        assert run(*arguments) == FAILURE
    assert f"ermission denied: '{secret}'" in capsys.readouterr().err
