"""Configurations in YAML and JSON: keys as options or in sections, and errors that name them."""

import dataclasses
import json

import pytest

from maskrcnn_scratch.builders.from_config import ModelConfig
from maskrcnn_scratch.data.augment import Augmentation
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.config_file import read_config

CONFIG = TrainConfig(
    train_annotations="a.json",
    epochs=4,
    learning_rate=1e-3,
    patience=3,
    model=ModelConfig(architecture="small", weights="none", min_size=(64,)),
    augmentation=Augmentation(crop=(50, 64), horizontal_flip=False),
)
FORMS = {
    "options": """
train-annotations: a.json
epochs: 4
learning-rate: 1e-3
patience: 3
architecture: small
weights: none
min-size: 64
crop: [50, 64]
horizontal-flip: false
""",
    "sections": """
train_annotations: a.json
epochs: 4
learning_rate: 0.001
patience: 3
model:
  architecture: small
  weights: none
  min-size: [64]
augmentation: {crop: [50, 64], horizontal_flip: no}
""",
}


@pytest.mark.parametrize("form", FORMS)
def test_keys_are_those_of_the_options(form, tmp_path):
    (tmp_path / "run.yaml").write_text(FORMS[form])
    assert read_config(tmp_path / "run.yaml") == CONFIG


def test_a_stored_configuration_is_read_back(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(CONFIG)))
    assert read_config(tmp_path / "config.json") == CONFIG


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "no field 'epoch'; did you mean 'epochs'"),
        ("model: {blokcs: [1]}", "no field 'blokcs'; did you mean 'blocks'"),
        ("epochs: many", "epochs is 'many', not int"),
        ("epochs: true", "epochs is True, not int"),
        ("learning-rate: fast", "learning_rate is 'fast', not float"),
        ("crop: 5", "crop is 5, not tuple"),
        ("optimizer: adam", "optimizer is 'adam', not Literal"),
        ("min-size: [1, big]", r"min_size is \[1, 'big'\]"),
        ("model: 3", "ModelConfig needs names and values, got 3"),
        ("epochs: 0", "epochs must be positive"),
        ("[1, 2]", "a configuration has keys and values"),
        ("a: [", "not YAML"),
    ],
)
def test_errors_name_the_file_and_the_key(text, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"run\.yaml: .*{message}"):
        read_config(path)


def test_a_missing_file_is_named(tmp_path):
    for name in ("gone.yaml", "gone.json"):
        with pytest.raises(FileNotFoundError, match=name):
            read_config(tmp_path / name)
