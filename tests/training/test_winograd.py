"""Training with Winograd convolutions: the same losses and gradients, the same checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.ops.winograd_conv2d import winograd_conv2d
from maskrcnn_scratch.parity.losses import random_target
from maskrcnn_scratch.training import winograd
from maskrcnn_scratch.training.trainer import Trainer
from maskrcnn_scratch.training.winograd import TrainedWinogradConv2d, train_with_winograd
from tests.training.toy import SIZES, ToyModel, ToySet, toy_config


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> MaskRCNN:
    monkeypatch.setattr(winograd, "LEAST_LOCATIONS", 0)
    torch.manual_seed(0)
    return small_maskrcnn(91, min_size=96, max_size=128).train()


def test_losses_and_gradients_are_the_same(model: MaskRCNN) -> None:
    fast = copy.deepcopy(model)
    train_with_winograd(fast)
    layers = [layer for layer in fast.modules() if isinstance(layer, TrainedWinogradConv2d)]
    # One in each of four blocks, 4 of the FPN, 1 of the RPN and 2 of the mask head.
    assert len(layers) == 11
    assert fast.state_dict().keys() == model.state_dict().keys()
    images = [torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(n)) for n in (0, 1)]
    targets = [random_target(image, 5, seed=n) for n, image in enumerate(images)]
    found = []
    for side in (model, fast):
        torch.manual_seed(0)  # of the samplers
        losses = side(images, targets)
        sum(losses.values()).backward()
        found.append(losses)
    for name, loss in found[0].items():
        # Relative errors of 1e-6 per layer, grown by about ten layers and their normalisations.
        torch.testing.assert_close(found[1][name], loss, rtol=1e-4, atol=0)
    ours, theirs = (
        torch.cat([p.grad.flatten() for p in side.parameters()]) for side in (fast, model)
    )
    # Rounding changes which ReLUs are active, and with them single gradients.
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def test_small_maps_and_other_dtypes_run_as_the_convolution_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conv, x = nn.Conv2d(32, 32, 3, padding=1), torch.randn(1, 32, 40, 50)
    fast = TrainedWinogradConv2d(conv, 4)
    assert torch.equal(fast(x), winograd_conv2d(x, conv.weight, conv.bias, fast.transform))
    assert not torch.equal(fast(x), conv(x))
    small = x[:, :, :39]
    assert torch.equal(fast(small), conv(small))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), conv(x))
    assert torch.equal(fast.double()(x.double()), conv(x.double()))


def test_trainer_uses_it_by_flag(tmp_path: Path) -> None:
    def trained(**changes: bool) -> Trainer:
        toy = ToyModel(random=False)
        toy.conv = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, padding=1))
        toy.head = nn.Linear(32, 5)
        config = toy_config(tmp_path / str(changes), precision="fp32", **changes)
        trainer = Trainer(toy, ToySet(), SIZES, config)
        assert isinstance(trainer.model.conv[1], TrainedWinogradConv2d) == bool(changes)
        return trainer

    plain, fast = trained(), trained(winograd=True)
    assert plain.model.state_dict().keys() == fast.model.state_dict().keys()
    assert fast.optimizer.param_groups[0]["params"][2] is fast.model.conv[1].weight


def test_a_model_without_such_convolutions_is_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path, precision="fp32", winograd=True)
    with pytest.raises(ValueError, match="no 3x3 convolution that can be replaced"):
        Trainer(ToyModel(), ToySet(), SIZES, config)
