"""Two processes compute what one does, and both end if one fails."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import closing

import pytest
import torch

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model
from maskrcnn_scratch.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn_scratch.data.augment import Augmentation, AugmentedDataset
from maskrcnn_scratch.data.shapes import ShapesDataset
from maskrcnn_scratch.training import distributed
from maskrcnn_scratch.training.trainer import Trainer
from tests.training import toy

PLAIN = {"accumulate": 1, "epochs": 2, "learning_rate": 0.1, "optimizer": "sgd"}


def free_port():
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_together(function, *args, processes=2):
    """Runs ``function(*args)`` on several processes, as torchrun does."""
    shared = {
        "WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "OMP_NUM_THREADS": 1,
    }
    started = [
        toy.start(function, *args, RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in range(processes)
    ]
    for process in started:
        process.join(60)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def train_plain(folder, changes):
    with distributed.process_group(torch.device("cpu")):
        trainer = toy.toy_trainer(folder, toy.ToyModel(random=False), **changes)
        trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, 8])
def test_two_processes_equal_one_on_the_same_batches(batch_size, tmp_path):
    """The processes have different numbers of objects and, of 11, of validation images."""
    changes = {**PLAIN, "batch_size": batch_size}
    assert toy.run(train_plain, tmp_path / "one", changes) == 0
    assert run_together(train_plain, tmp_path / "two", changes) == [0, 0]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) and {"val/loss_mask", "loss_mask"} <= {
        k for line in one for k in line
    }
    for ours, theirs in zip(one, two, strict=True):
        for name in ours.keys() - {"images_per_s"}:
            # The logged loss_mask is the mean of the processes', each scaled to the whole batch.
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5, abs=1e-7), name
    weights = [load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("one", "two")]
    start = toy.ToyModel(random=False).state_dict()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-6)
        assert (value - start[name]).abs().max() > 1e-3


def first_ones(labels, generator=None):
    """A sampler without random numbers, which differ between processes."""
    positive = [(in_image >= 1).nonzero().squeeze(1)[:8] for in_image in labels]
    negative = [(in_image == 0).nonzero().squeeze(1)[:24] for in_image in labels]
    return positive, negative


def one_step_of_the_real_model(folder):
    """Saves the gradient of every parameter: the step of SGD with learning rate 1."""
    config = ModelConfig(
        architecture="small",
        weights="none",
        widths=(8, 16, 16, 16),
        min_size=(64,),
        max_size=64,
        anchor_sizes=(8, 16, 32, 48, 64),
    )
    with distributed.process_group(torch.device("cpu")):
        torch.manual_seed(0)
        model = build_model(config, 4)
        for module in model.modules():  # its statistics depend on the images of the process
            for name, child in module.named_children():
                if isinstance(child, torch.nn.BatchNorm2d):
                    setattr(module, name, torch.nn.Identity())
        model.rpn.fg_bg_sampler = model.roi_heads.fg_bg_sampler = first_ones
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        shapes = ShapesDataset(4, side=64)
        recipe = toy.toy_config(
            folder, batch_size=4, accumulate=1, optimizer="sgd", learning_rate=1.0, warmup=0.0,
            clip_grad_norm=None, weight_decay=0.0,
        )  # fmt: skip
        dataset = AugmentedDataset(shapes, Augmentation(horizontal_flip=False).build())
        trainer = Trainer(model, dataset, shapes.sizes, recipe)
        trainer.train_step(trainer.read_batches())
        if distributed.is_main():
            gradients = {name: before[name] - p.detach() for name, p in model.named_parameters()}
            save_checkpoint({"model": gradients}, folder / "gradients.pt")


@pytest.mark.slow
def test_gradients_of_the_real_model_on_two_processes_are_those_of_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert toy.run(one_step_of_the_real_model, tmp_path / "one") == 0
    assert run_together(one_step_of_the_real_model, tmp_path / "two") == [0, 0]
    one, two = (load_checkpoint(tmp_path / n / "gradients.pt")["model"] for n in ("one", "two"))
    assert sum(gradient.norm() > 0 for gradient in one.values()) > 0.9 * len(one)
    for name, gradient in one.items():
        assert (two[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.slow
def test_two_processes_can_be_resumed(tmp_path):
    """Also with random numbers: dropout differs between processes, batch norm is the main one's."""
    assert run_together(toy.main, tmp_path / "whole") == [0, 0]
    with_death = run_together(toy.main, tmp_path / "killed", "{}", "forward:7")
    assert with_death[0] == -9 and with_death[1] == 1, "the other process fails, it does not hang"
    assert run_together(toy.main, tmp_path / "killed") == [0, 0]
    whole, killed = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "killed"))
    assert killed["step"] == whole["step"] == 9
    for name, value in whole["model"].items():
        torch.testing.assert_close(killed["model"][name], value, rtol=0, atol=0)


class UnreadableOnRankOne(toy.ToySet):
    def __getitem__(self, key):
        if key.epoch == 1 and distributed.rank() == 1:
            raise ValueError("image file is truncated")
        return super().__getitem__(key)


def train_until_unreadable(folder):
    with distributed.process_group(torch.device("cpu")):
        config = toy.toy_config(folder, save_every=100)
        trainer = Trainer(toy.ToyModel(), UnreadableOnRankOne(), toy.SIZES, config)
        trainer.train()


@pytest.mark.slow
def test_a_bad_image_on_any_process_loses_no_step(tmp_path):
    assert run_together(train_until_unreadable, tmp_path) == [1, 1]
    steps = len([line for line in (tmp_path / "log.jsonl").open() if "learning_rate" in line])
    assert load_checkpoint(tmp_path / "last.pt")["step"] == steps > 0


@pytest.mark.slow
def test_torchrun_ends_when_a_process_dies(tmp_path):
    began = time.monotonic()
    outcome = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         f"--master-port={free_port()}", "-m", "tests.training.toy", tmp_path, "{}", "forward:3"],
        env={**os.environ, "DIE_ON_RANK": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert outcome.returncode != 0
    assert "Signal 9 (SIGKILL)" in outcome.stderr or "exitcode: -9" in outcome.stderr.lower()
    assert time.monotonic() - began < 60


def gather(folder):
    with distributed.process_group(torch.device("cpu")):
        rank = distributed.rank()
        gathered = distributed.gather_on_main([rank] * (rank + 1))
        assert gathered == ([[0], [1, 1]] if rank == 0 else [])
        assert distributed.broadcast_from_main(f"from {rank}") == "from 0"
        assert distributed.any_rank(rank == 1, torch.device("cpu"))
        assert not distributed.any_rank(False, torch.device("cpu"))
        module = torch.nn.BatchNorm1d(2)
        module.running_mean.fill_(rank)
        distributed.broadcast_buffers(module)
        assert module.running_mean.tolist() == [0, 0]


def test_exchange(tmp_path):
    assert run_together(gather, tmp_path) == [0, 0]
    assert distributed.gather_on_main(3) == [3] and distributed.broadcast_from_main(3) == 3
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
