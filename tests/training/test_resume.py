"""A run that was killed at any point and resumed equals an uninterrupted one, bit for bit."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch

from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.data.loader import evaluation_loader
from maskrcnn_scratch.training.interrupt import Stopped
from tests.training import toy


def assert_same(ours, theirs, path=""):
    assert type(ours) is type(theirs), path
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), path
        for key in ours:
            assert_same(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), path
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{path}/{index}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), path
    else:
        assert ours == theirs, path


def results(folder):
    """The files of a run, without output folder and speed."""
    found = {}
    for name in ("last.pt", "best.pt"):
        found[name] = load_checkpoint(folder / name)
        for setting in ("output", "num_workers", "save_every"):
            del found[name]["config"][setting]
        if "training" in found[name]:
            del found[name]["training"]["log"]["seconds"]
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    found["log"] = [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert toy.run(toy.main, folder) == 0
    found = results(folder)
    assert found["last.pt"]["step"] == 9 == found["log"][-1]["step"]
    assert found["last.pt"]["class_names"] == {1: "noise"}
    return found


# Nine steps of two micro-batches; files 1, 3, 4 ... are log, best.pt and last.pt in turn.
@pytest.mark.parametrize(
    "deaths",
    [
        ["forward:1"],
        ["forward:12"],
        ["write:2"],
        ["written:2"],
        ["written:4", "forward:4", "write:3"],
        ["written:3", "written:3", "written:3"],
    ],
)
def test_killed_and_resumed(deaths, uninterrupted, tmp_path):
    for where in deaths:
        assert toy.run(toy.main, tmp_path, "{}", where) == -signal.SIGKILL
    assert toy.run(toy.main, tmp_path) == 0
    assert_same(results(tmp_path), uninterrupted)
    assert not list(tmp_path.glob("*.part"))


def test_log_lines_that_average_over_steps_before_a_checkpoint(tmp_path):
    """A checkpoint every 2 steps, a line every 3 steps: none is lost or shifted by a kill."""
    changes = json.dumps({"log_every": 3, "epochs": 4, "validate_every": 4})
    assert toy.run(toy.main, tmp_path / "whole", changes) == 0
    for where in ("forward:6", "forward:6", "forward:8"):
        assert toy.run(toy.main, tmp_path / "killed", changes, where) == -signal.SIGKILL
    assert toy.run(toy.main, tmp_path / "killed", changes) == 0
    whole, killed = (results(tmp_path / name)["log"] for name in ("whole", "killed"))
    assert [line["step"] for line in whole] == [3, 6, 9, 12, 12]
    assert_same(killed, whole)


def test_killed_with_workers(uninterrupted, tmp_path):
    workers = json.dumps({"num_workers": 2})
    assert toy.run(toy.main, tmp_path, workers, "forward:8") == -signal.SIGKILL
    assert toy.run(toy.main, tmp_path, workers) == 0
    assert_same(results(tmp_path), uninterrupted)


def interrupt_itself(folder, number):
    """Sends the signal in the fifth forward pass, which is in the third step."""
    before = signal.getsignal(signal.SIGINT)
    trainer = toy.toy_trainer(folder, save_every=100)
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), number)

    trainer.model.register_forward_pre_hook(hook)
    with pytest.raises(Stopped, match="stopped after step 3 of 9"):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is before  # a job in the background ignores it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_finishes_the_step_and_saves(number, uninterrupted, tmp_path):
    assert toy.run(interrupt_itself, tmp_path, number) == 0
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3
    assert toy.run(toy.main, tmp_path, json.dumps({"save_every": 100})) == 0
    assert_same(results(tmp_path), uninterrupted)


def interrupt_the_whole_group(folder, number):
    """Sends a signal to the whole job, including the data loader's processes."""
    os.setpgrp()
    trainer = toy.toy_trainer(folder, save_every=100, num_workers=2)
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == 5:
            # Sent by another process, as a SIGTERM from the parent ends workers.
            kill = ["kill", f"-{number}", "--", f"-{os.getpgrp()}"]
            subprocess.run(kill, start_new_session=True, check=True)
        time.sleep(0.05)  # time in which a worker would end

    trainer.model.register_forward_pre_hook(hook)
    with pytest.raises(Stopped, match="stopped after step 3 of 9"):
        trainer.train()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_ignore_a_signal_to_the_whole_group(number, uninterrupted, tmp_path):
    assert toy.run(interrupt_the_whole_group, tmp_path, number) == 0
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3
    assert toy.run(toy.main, tmp_path, json.dumps({"save_every": 100})) == 0
    assert_same(results(tmp_path), uninterrupted)


still_running = []  # as the traceback of an error keeps a loader alive


def exit_with_running_workers():
    still_running.append(iter(evaluation_loader(toy.ToySet(), num_workers=2)))
    next(still_running[0])


def test_running_workers_do_not_delay_the_exit():
    assert toy.run(exit_with_running_workers) == 0  # within a minute
