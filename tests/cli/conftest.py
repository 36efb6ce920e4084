"""A checkpoint, images and a training set for the tests of ``maskrcnn predict`` and ``train``."""

import warnings
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model
from maskrcnn_scratch.checkpoint import save_checkpoint
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.data.augment import Augmentation
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.training.config import TrainConfig
from tests.cli.predicting import THRESHOLD
from tests.tiny import TINY


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small model with random weights, as ``maskrcnn train`` saves it."""
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    config = ModelConfig(
        architecture="small", weights="none", min_size=(96,), max_size=160, detections=20
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config, 3)
    content = {
        "model": model.state_dict(),
        "config": {"model": asdict(config)},
        "class_names": {1: "cat", 2: "dog"},
        "category_labels": {10: 1, 20: 2},
    }
    save_checkpoint(content, path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, photographs):
    """A folder with two photographs, one of them rotated by EXIF, and a text file."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(photographs["cat"][::2, ::2]).save(folder / "cat.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photographs["rocket"][::3, ::3]).save(folder / "rocket.jpg", exif=exif)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def predict(checkpoint, tmp_path, capsys):
    """Runs the command into ``tmp_path / "out"``; returns exit status, stdout and stderr.

    ``run.warnings`` has the warnings of the last call, one per line.
    """

    def run(*args, weights=checkpoint, threshold=THRESHOLD):
        args = [*map(str, args), "--weights", str(weights), "--out", str(tmp_path / "out")]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            status = main(["predict", *args, "--score-threshold", str(threshold)])
        run.warnings = "".join(f"{warning.message}\n" for warning in caught)
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    """Three epochs on ten generated images."""
    folder = tmp_path_factory.mktemp("shapes")
    return TrainConfig(
        train_annotations=str(write_coco(ShapesDataset(10, seed=1, side=64), folder / "train")),
        val_annotations=str(write_coco(ShapesDataset(3, seed=2, side=64), folder / "val")),
        model=TINY,
        augmentation=Augmentation(photometric=True),
        epochs=3,
        batch_size=4,
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        ema_decay=0.9,
        device="cpu",
        num_workers=0,
        save_every=2,
        log_every=2,
    )
