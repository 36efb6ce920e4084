"""A configuration is unchanged by JSON, and errors in it are named."""

import dataclasses
import json

import pytest

from maskrcnn_scratch.builders.from_config import ModelConfig
from maskrcnn_scratch.data.augment import Augmentation
from maskrcnn_scratch.plain_values import from_dict
from maskrcnn_scratch.training.config import TrainConfig


def test_round_trip_through_json():
    config = TrainConfig(
        "a.json",
        "a",
        model=ModelConfig(architecture="small", weights="none", anchor_sizes=(8, 16, 32, 64, 128)),
        augmentation=Augmentation(crop=(100, 165)),
        clip_grad_norm=5.0,
        milestones=(3, 4),
    )
    text = json.dumps(dataclasses.asdict(config))
    assert from_dict(TrainConfig, json.loads(text)) == config


@pytest.mark.parametrize("values, message", [
    ({"epoch": 3}, "TrainConfig has no field 'epoch'; did you mean 'epochs'?"),
    ({"model": {"blokcs": [1]}}, "ModelConfig has no field 'blokcs'; did you mean 'blocks'"),
    ({"xyz": 1}, "TrainConfig has no field 'xyz'$"),
])  # fmt: skip
def test_wrong_keys_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(TrainConfig, values)


@pytest.mark.parametrize("change, message", [
    ({"epochs": 0}, "epochs must be positive, got 0"),
    ({"batch_size": -1}, "batch_size must be positive, got -1"),
    ({"learning_rate": float("nan")}, "learning_rate must be positive"),
    ({"warmup": 1.5}, "warmup must be in 0 to 1"),
    ({"ema_decay": 1.0}, "ema_decay must be"),
    ({"num_workers": -1}, "num_workers"),
    ({"seed": -1}, "seed must not be negative"),
    ({"winograd": True, "precision": "bf16"}, "winograd needs precision fp32"),
    ({"winograd": True, "compile": True}, "winograd needs precision fp32, and no compile"),
])  # fmt: skip
def test_wrong_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)


def test_wrong_models_are_refused():
    with pytest.raises(ValueError, match="anchor_sizes must be 5 numbers, or a multiple"):
        ModelConfig(anchor_sizes=(32, 64))
    with pytest.raises(ValueError, match="no imagenet weights for the small model"):
        ModelConfig(architecture="small")
