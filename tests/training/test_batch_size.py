"""``--batch-size auto``, with stand-ins for the memory of a GPU."""

import json
from dataclasses import replace

import pytest
import torch

from maskrcnn_scratch.builders.from_config import ModelConfig
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.cli import train as train_command
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.training import batch_size, distributed
from maskrcnn_scratch.training.batch_size import automatic_batch_size, fitting_batch_size
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.config_file import read_config


@pytest.mark.parametrize(
    "available, most, expected",
    [(10, 64, 1), (55, 64, 4), (80, 64, 4), (10**6, 24, 16), (85, 1, 1)],
)
def test_the_largest_power_of_two_that_fits(available, most, expected):
    assert fitting_batch_size(lambda images: 10 * images + (images > 1) * 5, available, most) == (
        expected
    )


def test_running_out_of_memory_ends_the_search():
    tried = []

    def peak(images):
        tried.append(images)
        if images > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images

    assert fitting_batch_size(peak, 100, 64) == 4
    assert tried == [1, 2, 4, 8]
    with pytest.raises(ValueError, match=r"one image does not fit into 0\.0 GiB: use smaller"):
        fitting_batch_size(lambda images: 2, 1, 64)


def test_on_a_gpu_processes_and_micro_batches_count(monkeypatch):
    class Model(torch.nn.Module):
        def to(self, device):
            return self

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("", (), {"total_memory": 1000})
    )
    monkeypatch.setattr(batch_size, "cuda_memory", lambda *args: lambda images: 100 * images)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast_from_main", lambda value: value)
    config = TrainConfig(batch_size="auto", accumulate=3)
    device = torch.device("cuda")
    assert automatic_batch_size(config, Model, [], device, 1000) == 8 * 2 * 3
    assert automatic_batch_size(config, Model, [], device, 20) == 2 * 2 * 3


def test_on_the_cpu_it_is_the_default_and_stored(tmp_path, monkeypatch):
    data = write_coco(ShapesDataset(4, seed=1, side=64), tmp_path / "data")
    words = [
        "train", "--train-annotations", str(data), "--output", str(tmp_path / "run"),
        "--architecture", "small", "--weights", "none", "--widths", "8", "8", "8", "8",
        "--min-size", "64", "--max-size", "64", "--anchor-sizes", "8", "16", "32", "48", "64",
        "--epochs", "1", "--batch-size", "auto", "--device", "cpu", "--num-workers", "0",
        "--no-pictures", "--no-tensorboard",
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="on the cpu it is 4, the default"):
        assert main(words) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batch_size"] == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu(tmp_path):
    data = write_coco(ShapesDataset(4, seed=1, side=64), tmp_path / "data")
    config = replace(
        TrainConfig(train_annotations=str(data), output=str(tmp_path / "run"), batch_size="auto"),
        model=ModelConfig(architecture="small", weights="none"),
    )
    trainer = train_command.make_trainer(config, torch.device("cuda"))
    assert trainer.batch_size in (1, 2, 4)
    assert torch.cuda.memory_allocated() < torch.cuda.max_memory_allocated()


def test_values(tmp_path):
    for text, expected in (("auto", "auto"), ("8", 8)):
        (tmp_path / "config.yaml").write_text(f"batch-size: {text}\n")
        assert read_config(tmp_path / "config.yaml").batch_size == expected
    (tmp_path / "config.yaml").write_text("batch-size: many\n")
    with pytest.raises(ValueError, match="batch_size is 'many'"):
        read_config(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        TrainConfig(batch_size=0)
