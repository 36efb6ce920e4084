"""Full disks, folders that cannot be written, images that vanish, processes that die or hang."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.cli import FAILURE
from maskrcnn_scratch.cli import main as maskrcnn
from maskrcnn_scratch.export import ExportOptions
from maskrcnn_scratch.export.to_file import convert_pt2
from maskrcnn_scratch.files import append_line
from maskrcnn_scratch.training import distributed
from maskrcnn_scratch.training.run_lock import lock_run
from maskrcnn_scratch.training.trainer import Trainer
from tests.faults import kills
from tests.training import test_distributed, toy


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    kills.prepare(folder)
    return folder


def with_log(log: Path, limit: int, job: str, inputs: Path, output: Path) -> None:
    """Runs a job that may write files of at most ``limit`` bytes."""
    sys.stdout = sys.stderr = printed = io.StringIO()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        getattr(kills, job)(inputs, output)
    except BaseException as error:
        printed.write(f"{error}\n")
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, resource.RLIM_INFINITY))
        log.write_text(printed.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize("job", ["train", "evaluate", "predict"])
def test_full_disk(job: str, inputs: Path, tmp_path: Path) -> None:
    """The error names the file, no file is half there, and with space the command works."""
    output, log = tmp_path / "output", tmp_path / "log"
    output.mkdir()
    assert toy.run(with_log, log, 900, job, inputs, output) == 1
    text = log.read_text()
    assert str(output) in text and "File too large" in text
    assert not list(output.rglob("*.part")), "a file that could not be written was left"
    kills.content_of(output)
    assert toy.run(with_log, log, -1, job, inputs, output) == 0, log.read_text()
    kills.content_of(output)


def lock_and_log(folder: Path, log: Path) -> None:
    """With space for neither, and for half a line."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    messages = []
    for limit in (0, 20):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for attempt in (
            lambda: lock_run(folder).__enter__(),
            lambda: append_line(folder / "log.jsonl", '{"step": 1234567890}'),
        ):
            try:
                attempt()
            except OSError as error:
                messages.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, resource.RLIM_INFINITY))
    log.write_text("\n".join(messages))


@pytest.mark.slow
def test_full_disk_for_a_line(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert toy.run(lock_and_log, folder, log) == 0
    lines = log.read_text().splitlines()
    assert lines.count(f"{folder}/run.lock: could not be written (File too large)") >= 1
    assert lines.count(f"{folder}/log.jsonl: could not be written (File too large)") == 2
    assert (folder / "log.jsonl").read_text() == ""


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def export_of_something_small(path: Path, log: Path) -> None:
    program = torch.export.export(Doubled(), (torch.ones(1000),))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.RLIM_INFINITY))
    try:
        convert_pt2(small_maskrcnn(2), program, ExportOptions((64, 64)))(path)
    except OSError as error:
        log.write_text(str(error))


@pytest.mark.slow
def test_full_disk_at_the_end_of_an_export(tmp_path: Path) -> None:
    """Torch's writer would end the process."""
    path, log = tmp_path / "model.pt2", tmp_path / "log"
    assert toy.run(export_of_something_small, path, log) == 0
    assert "File too large" in log.read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_vanishes(
    workers: int, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree(inputs / "images", tmp_path / "images")
    (annotations,) = images.glob("*.json")
    gone = sorted(file for file in images.rglob("*") if file.suffix in (".png", ".jpg"))[1]
    gone.unlink()
    arguments = ["evaluate", "--annotations", annotations, "--weights", inputs / "weights.pt",
                 "--json", tmp_path / "scores.json", "--num-workers", workers]  # fmt: skip
    assert maskrcnn([str(argument) for argument in arguments]) == FAILURE
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(gone) in error or gone.name in error
    assert not (tmp_path / "scores.json").exists()


class DeadlyInWorkers(toy.ToySet):
    """Kills the worker in the last epoch, as workers read batches before they are needed."""

    def __getitem__(self, key: Any) -> Any:
        if key.epoch == 2 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


def train_with_deadly_workers(folder: Path, log: Path) -> None:
    sys.stderr = log.open("w")
    config = toy.toy_config(folder, num_workers=2, save_every=1)
    Trainer(toy.ToyModel(), DeadlyInWorkers(), toy.SIZES, config).train()


@pytest.mark.slow
def test_a_data_worker_is_killed(tmp_path: Path) -> None:
    """The run ends with an error, and goes on from its last checkpoint."""
    assert toy.run(train_with_deadly_workers, tmp_path / "run", tmp_path / "log") == 1
    assert "DataLoader worker" in (tmp_path / "log").read_text()
    assert load_checkpoint(tmp_path / "run/last.pt")["step"] >= 1
    assert toy.run(toy.main, tmp_path / "run") == 0
    assert load_checkpoint(tmp_path / "run/last.pt")["step"] == 9


def stop_on_rank_one(folder: Path) -> None:
    with distributed.process_group(torch.device("cpu"), timedelta(seconds=4)):
        trainer = toy.toy_trainer(folder)
        if distributed.rank() == 1:
            trainer.model.register_forward_pre_hook(stop_in_third_call())
        trainer.train()


def stop_in_third_call() -> Callable[..., None]:
    calls = 0

    def hook(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGSTOP)

    return hook


@pytest.mark.slow
def test_a_process_that_stops_ends_the_others(tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1,
              "MASTER_PORT": test_distributed.free_port()}  # fmt: skip
    started = [
        toy.start(stop_on_rank_one, tmp_path, RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in range(2)
    ]
    started[0].join(120)
    ended = started[0].exitcode
    for process in started:
        process.kill()
        process.join()
    assert ended == 1
    kills.content_of(tmp_path)
