"""Steps as on a GPU: device sampling, compiled, bf16, and one host synchronisation per step."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from maskrcnn_scratch import host_sync
from maskrcnn_scratch.builders.from_config import build_model
from maskrcnn_scratch.check_parts import remember_parts
from maskrcnn_scratch.data.augment import Augmentation, AugmentedDataset
from maskrcnn_scratch.data.shapes import ShapesDataset
from maskrcnn_scratch.targets.sampler import DeviceSampler
from maskrcnn_scratch.training.optimizer import build_optimizer
from maskrcnn_scratch.training.trainer import Trainer
from tests.no_sync import SyncError, fake_gpu, no_sync
from tests.tiny import TINY
from tests.training import toy

MODEL = replace(TINY, pre_nms_top_n=40, post_nms_top_n=60, box_samples=32)


def make_trainer(folder, **changes):
    torch.manual_seed(0)
    shapes = ShapesDataset(6, side=64)
    recipe = toy.toy_config(folder, optimizer="sgd", ema_decay=None, warmup=0.0, **changes)
    dataset = AugmentedDataset(shapes, Augmentation(horizontal_flip=False).build())
    trainer = Trainer(build_model(MODEL, 4), dataset, shapes.sizes, recipe)
    trainer.model.transform._draw_min_size = lambda: 64  # a number on the host
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_host_synchronisation_per_step(accumulate, tmp_path, monkeypatch):
    monkeypatch.setattr(host_sync, "can_sync", lambda tensor: False)
    trainer = make_trainer(tmp_path, accumulate=accumulate, device_sampling=True)
    batches = [next(trainer.read_batches()) for _ in range(3 * accumulate)]
    with no_sync("cpu", reads=1):
        losses = trainer.train_step(iter(batches))
    assert losses["loss_mask"] > 0
    with no_sync("cpu"), pytest.raises(SyncError, match="tolist"):
        trainer.train_step(iter(batches[accumulate:]))


def test_losses_fall_with_device_sampling(tmp_path):
    trainer = make_trainer(
        tmp_path, device_sampling=True, learning_rate=0.02, accumulate=1, epochs=20
    )
    batches = trainer.read_batches()
    totals = [sum(trainer.train_step(batches).values()) for _ in range(20)]
    assert sum(totals[-4:]) < 0.7 * sum(totals[:4])


def test_bad_targets_are_named_before_they_go_to_the_device(tmp_path):
    trainer = make_trainer(tmp_path, device_sampling=True)
    image, target = ShapesDataset(1, side=64)[0]
    upside_down = {**target, "boxes": target["boxes"].flip(1), "file_name": "bad.png"}
    with pytest.raises(ValueError, match=r"target 0 \(bad.png\), object 0.*x2 > x1"):
        trainer.to_device(([image], [upside_down]))
    with pytest.raises(ValueError, match=r"labels must be at least 1 .* and at most 3"):
        trainer.to_device(([image], [{**target, "labels": target["labels"] + 9}]))


def test_samplers_by_flag(tmp_path):
    for flag in (False, True):
        model = make_trainer(tmp_path, device_sampling=flag).model
        for stage, samples in ((model.rpn, 32), (model.roi_heads, 32)):
            assert isinstance(stage.fg_bg_sampler, DeviceSampler) == flag
            assert stage.fg_bg_sampler.batch_size_per_image == samples


def test_compiled_parts_give_the_same_losses(tmp_path, monkeypatch):
    # aot_eager: the graphs and gradients of torch.compile without its minutes of C++.
    compile_module = partial(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module))
    torch.compiler.reset()
    steps = {}
    for flag in (False, True):
        trainer = make_trainer(tmp_path, compile=flag)
        batches = trainer.read_batches()
        steps[flag] = [trainer.train_step(batches) for _ in range(2)]
        compiled = [m for m in trainer.model.modules() if m._compiled_call_impl is not None]
        assert len(compiled) == (6 if flag else 0)
    torch.compiler.reset()
    for eager, compiled in zip(steps[False], steps[True], strict=True):
        assert compiled == pytest.approx(eager, rel=1e-4, abs=1e-6)


class Remembered:
    """Records the results of a function; after ``replay`` it returns the same results again."""

    def __init__(self, function):
        self.function, self.given, self.left = function, [], None

    def __call__(self, *args, **kwargs):
        if self.left is not None:
            return next(self.left)
        self.given.append(self.function(*args, **kwargs))
        return self.given[-1]

    def replay(self):
        self.left = iter(self.given)


def test_bf16_gives_the_losses_of_float32_up_to_its_precision(tmp_path):
    """With the same proposals and samples, since rounding changes which proposals NMS keeps."""
    trainer = make_trainer(tmp_path, learning_rate=1e-9)
    model = trainer.model
    model.rpn.propose = Remembered(model.rpn.propose)
    for stage in (model.rpn, model.roi_heads):
        stage.fg_bg_sampler = Remembered(stage.fg_bg_sampler)
    remember_parts(model)  # else the first step checks the samplers, which would be remembered
    batches = [next(trainer.read_batches()) for _ in range(2)]
    exact = trainer.train_step(iter(batches))
    for each in (model.rpn.propose, model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler):
        each.replay()
    trainer.config = replace(trainer.config, precision="bf16")
    rounded = trainer.train_step(iter(batches))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02, abs=1e-3)


def test_one_kernel_for_all_parameters_on_a_gpu(tmp_path):
    for optimizer in ("sgd", "adamw"):
        config = toy.toy_config(tmp_path, optimizer=optimizer)
        assert not build_optimizer(nn.Linear(1, 1), config).defaults["fused"]
        with fake_gpu():
            on_gpu = nn.Linear(1, 1, device="cuda")
            assert build_optimizer(on_gpu, config).defaults["fused"]
