"""Checkpoints are written atomically, and loading them runs no code."""

import errno
import os
import resource
from contextlib import contextmanager

import pytest
import torch

from maskrcnn_scratch import files
from maskrcnn_scratch.checkpoint import load_checkpoint, save_checkpoint
from tests.training import toy


@contextmanager
def file_size_limit(size):
    """Writing more than ``size`` bytes to a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_round_trip(tmp_path):
    content = {"model": {"w": torch.rand(3)}, "names": {1: "cat"}, "widths": (1, 2), "best": -1.5}
    save_checkpoint(content, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded["model"].pop("w"), content["model"].pop("w"))
    assert loaded == content
    assert os.listdir(tmp_path) == ["a.pt"]


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"model": {"w": torch.zeros(10)}}, path)
    with file_size_limit(50_000):
        with pytest.raises(
            OSError, match=r"last.pt: could not be written \(.+\); the file that was"
        ):
            save_checkpoint({"model": {"w": torch.ones(100_000)}}, path)
    assert torch.equal(load_checkpoint(path)["model"]["w"], torch.zeros(10))
    assert os.listdir(tmp_path) == ["last.pt"]


def test_full_disk_for_small_files(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"a.json: could not be written \(No space left on device\)$"):
        files.write_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == []


def test_training_stops_on_a_full_disk_and_can_be_resumed(tmp_path):
    trainer = toy.toy_trainer(tmp_path, save_every=1, epochs=1)
    trainer.train_step(trainer.read_batches())
    trainer.save("last.pt", resumable=True)
    with file_size_limit(1000), pytest.raises(OSError, match="the file that was there is"):
        trainer.train()
    resumed = toy.toy_trainer(tmp_path, save_every=1, epochs=1)
    resumed.resume()
    assert resumed.step == 1
    resumed.train()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_loading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pt")
    with pytest.raises(ValueError, match=r"^evil.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path.__class__("evil.pt"))
    assert not os.path.exists("ran")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_files_that_are_not_checkpoints(content, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.pt: not a readable checkpoint") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_missing_file_and_file_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "x.pt")
    torch.save({"weights": 1}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="has no 'model'"):
        load_checkpoint(tmp_path / "x.pt")
