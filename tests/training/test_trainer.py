"""The trainer with a toy model: single features, and errors."""

import json
import math
import re

import pytest
import torch
from PIL import Image
from torch import nn

from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.data.loader import Draw, TrainingBatches
from maskrcnn_scratch.training.finite_losses import NonFiniteLossError, describe
from maskrcnn_scratch.training.trainer import Trainer
from tests.training import toy


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


class PlainToy(toy.ToyModel):
    """A toy without random numbers or means over objects: images have equal weights."""

    def __init__(self):
        super().__init__(random=False)
        self.loss_mask = lambda logits, labels, targets: logits.sum() * 0


def test_loss_falls(tmp_path):
    trainer = toy.toy_trainer(
        tmp_path, epochs=8, learning_rate=0.05, validate_every=8, save_every=100
    )
    before = trainer.validate()["val/loss"]
    trainer.train()
    assert trainer.validate()["val/loss"] < before - 0.1


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    found = []
    for accumulate in (1, 2, 4):
        trainer = toy.toy_trainer(
            tmp_path,
            PlainToy(),
            accumulate=accumulate,
            optimizer="sgd",
            aspect_ratio_groups=False,  # whose batches depend on the size of a micro-batch
        )
        losses = trainer.train_step(trainer.read_batches())
        found.append((weights(trainer), torch.tensor(list(losses.values()))))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-7)


def test_batches_in_another_order(tmp_path):
    class LastImages(TrainingBatches):
        images_per_epoch = 4

        def order(self, epoch):
            return [7, 8, 9, 10]

    trainer = Trainer(
        toy.ToyModel(), toy.ToySet(), toy.SIZES, toy.toy_config(tmp_path), batches=LastImages
    )
    assert trainer.steps_per_epoch == 1
    seen = [target["file_name"] for batch in trainer.read_step(trainer.read_batches())
            for target in batch.targets]  # fmt: skip
    assert sorted(seen) == ["10.jpg", "7.jpg", "8.jpg", "9.jpg"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision, tmp_path):
    trainer = toy.toy_trainer(tmp_path, PlainToy(), precision=precision, optimizer="sgd")
    trainer.scaler._init_scale = 64.0  # the usual start overflows a few times first
    seen = []
    trainer.model.head.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    full = toy.toy_trainer(tmp_path, PlainToy(), optimizer="sgd")
    for each in (trainer, full):
        each.train_step(each.read_batches())
    assert set(seen) == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    moved = weights(full) - weights(toy.toy_trainer(tmp_path, PlainToy()))
    assert (weights(trainer) - weights(full)).norm() < 0.05 * moved.norm()
    assert bool(trainer.scaler.state_dict()) == (precision == "fp16")


def test_overflow_in_fp16_skips_the_step_and_lowers_the_scale(tmp_path):
    trainer = toy.toy_trainer(tmp_path, PlainToy(), precision="fp16")
    before, scale = weights(trainer), trainer.scaler.get_scale()
    trainer.model.head.weight.register_hook(lambda grad: grad * math.inf)
    trainer.train_step(trainer.read_batches())
    assert torch.equal(weights(trainer), before)
    assert trainer.scaler.get_scale() == scale / 2


def test_clipping(tmp_path):
    steps = {}
    for norm in (None, 1e-3):
        trainer = toy.toy_trainer(
            tmp_path, PlainToy(), optimizer="sgd", clip_grad_norm=norm, warmup=0, weight_decay=0
        )
        before = weights(trainer)
        trainer.train_step(trainer.read_batches())
        steps[norm] = (weights(trainer) - before) / trainer.config.learning_rate
    assert steps[None].norm() > 0.01
    torch.testing.assert_close(steps[1e-3].norm().item(), 1e-3, rtol=1e-3, atol=0)


def test_frozen_parameters_stay(tmp_path):
    model = toy.ToyModel()
    model.conv.requires_grad_(False)
    before = model.conv.weight.clone()
    trainer = toy.toy_trainer(tmp_path, model)
    trainer.train_step(trainer.read_batches())
    assert torch.equal(model.conv.weight, before)
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == 4


def test_validation_changes_nothing(tmp_path):
    trainer = toy.toy_trainer(tmp_path, ema_decay=None)
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    first, second = trainer.validate(), trainer.validate()
    assert first == second
    assert set(first) == {"val/loss", *(f"val/{name}" for name in toy.LOSSES)}
    assert all(torch.equal(v, state[name]) for name, v in trainer.model.state_dict().items())


def test_best_is_kept(tmp_path):
    trainer = toy.toy_trainer(tmp_path)
    scores = iter([0.2, 0.5, 0.3])
    best_weights = {}

    def evaluate(model):
        score = next(scores)
        if score == 0.5:
            best_weights.update({k: v.clone() for k, v in model.state_dict().items()})
        return {"score": score}

    trainer.evaluate = evaluate
    trainer.train()
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["step"] == 6 and "training" not in best
    assert all(torch.equal(value, best_weights[name]) for name, value in best["model"].items())
    assert load_checkpoint(tmp_path / "last.pt")["training"]["best"] == 0.5


def nan_on(trainer, file_name, loss):
    """Makes one loss NaN for batches with this image."""
    compute = trainer.model.losses

    def losses(images, targets):
        found = compute(images, targets)
        if any(target["file_name"] == file_name for target in targets):
            found[loss] = found[loss] * math.nan
        return found

    trainer.model.losses = losses


def test_nan_loss_is_named_and_changes_nothing(tmp_path):
    trainer = toy.toy_trainer(tmp_path, batch_size=2)
    nan_on(trainer, "3.jpg", "loss_box_reg")
    with pytest.raises(NonFiniteLossError) as error:
        trainer.train()
    message = str(error.value)
    assert re.match(r"step \d+, learning rate \S+: loss_box_reg is nan; images: 3.jpg", message)
    assert "3.jpg (annotations 300, 301, 302)" in message
    assert weights(trainer).isfinite().all()
    assert trainer.step < trainer.steps_per_epoch


def test_nan_gradient_is_named_and_changes_nothing(tmp_path):
    trainer = toy.toy_trainer(tmp_path, clip_grad_norm=None)
    trainer.model.head.weight.register_hook(lambda grad: grad * math.nan)
    before = weights(trainer)
    with pytest.raises(NonFiniteLossError, match=r"gradient is nan; images: (\d+.jpg .*){4}"):
        trainer.train()
    assert torch.equal(weights(trainer), before)


def test_describe():
    assert describe({"file_name": "a.jpg", "annotation_ids": torch.tensor([4, 9])}) == (
        "a.jpg (annotations 4, 9)"
    )
    assert describe({"image_id": 7}) == "image 7 (no annotations)"


class BrokenSet(toy.ToySet):
    def __init__(self, error):
        self.error = error

    def __getitem__(self, key):
        if key == Draw(0, 5):
            raise self.error
        return super().__getitem__(key)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("5.jpg: image file is truncated"),
        RuntimeError("5.jpg: sizes differ\nException raised from: somewhere"),
        Image.UnidentifiedImageError("5.jpg: what is this?"),
    ],
)
def test_bad_image_is_named(num_workers, error, tmp_path):
    config = toy.toy_config(tmp_path, num_workers=num_workers, batch_size=11, accumulate=1)
    trainer = Trainer(toy.ToyModel(), BrokenSet(error), toy.SIZES, config)
    with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
        trainer.train()
    assert not (tmp_path / "last.pt").exists(), "nothing was learned"


def test_a_bad_image_loses_no_step(tmp_path):
    """In training and in validation. The resumed run equals an uninterrupted one."""

    class BrokenLater(toy.ToySet):
        broken_epoch = 1  # the others are as in ToySet

        def __getitem__(self, key):
            if isinstance(key, Draw) and key.epoch == self.broken_epoch:
                raise ValueError("image file is truncated")
            return super().__getitem__(key)

    def trainer(train_set, evaluate, output=tmp_path / "broken"):
        config = toy.toy_config(output, save_every=100, validate_every=2)
        made = Trainer(toy.ToyModel(), train_set, toy.SIZES, config, "cpu", toy.ToySet(), evaluate)
        made.resume()
        return made

    def breaking(model):
        raise ValueError("validation image is truncated")

    def score(model):
        return {"score": 0.5}

    with pytest.raises(ValueError, match=r"^image file is truncated"):
        trainer(BrokenLater(), score).train()
    first = trainer(toy.ToySet(), breaking)
    assert first.step == first.steps_per_epoch
    with pytest.raises(ValueError, match="validation image is truncated"):
        first.train()
    second = trainer(toy.ToySet(), score)
    assert second.step == 2 * second.steps_per_epoch and second.validation_due
    second.train()
    whole = trainer(toy.ToySet(), score, tmp_path / "whole")
    whole.train()
    assert torch.equal(weights(second), weights(whole))
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / name / "log.jsonl").open()]
        for name in ("broken", "whole")
    ]
    assert steps[0] == steps[1]


def test_batches_must_split_evenly(tmp_path):
    with pytest.raises(ValueError, match="batch_size 5 does not split evenly over 1 processes"):
        toy.toy_trainer(tmp_path, batch_size=5)


def test_sync_batch_norm_by_flag(tmp_path):
    trainer = toy.toy_trainer(tmp_path, sync_batch_norm=True)
    assert isinstance(trainer.model.norm, nn.SyncBatchNorm)


def test_images_without_objects_train(tmp_path):
    trainer = toy.toy_trainer(tmp_path, batch_size=1, accumulate=1)
    image, target = toy.ToySet()[0]
    assert len(target["labels"]) == 0
    losses = trainer.train_step(iter([([image], [target])]))
    assert losses["loss_mask"] == 0 and all(map(math.isfinite, losses.values()))
