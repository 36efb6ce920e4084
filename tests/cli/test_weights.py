from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskrcnn_scratch import maskrcnn_resnet50_fpn
from maskrcnn_scratch.builders.from_config import ModelConfig, build_model
from maskrcnn_scratch.checkpoint import save_checkpoint
from maskrcnn_scratch.weights import WeightsError, enums, read_state_dict, write_state_dict
from maskrcnn_scratch.weights.download import sha256_of

tyro = pytest.importorskip("tyro")
from maskrcnn_scratch.cli.weights import convert, show  # noqa: E402


@pytest.fixture(scope="module")
def state_dict() -> dict[str, Tensor]:
    return dict(maskrcnn_resnet50_fpn(weights_backbone=None, num_classes=3).state_dict())


def run(command: object, *arguments: object) -> int:
    return tyro.cli(command, args=[str(argument) for argument in arguments])


def test_convert_there_and_back(
    state_dict: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs, back = (tmp_path / name for name in ("a.pth", "b.pkl", "c.safetensors"))
    torch.save({"model": state_dict, "epoch": 3}, ours)
    assert run(convert, ours, theirs, "--to", "detectron2") == 0
    assert "(torchvision) ->" in capsys.readouterr().out
    assert run(convert, theirs, back, "--from", "detectron2", "--to", "torchvision") == 0
    assert "Conventions.detectron2()" in capsys.readouterr().out
    found = read_state_dict(back)
    for key, tensor in state_dict.items():
        if not key.endswith("num_batches_tracked"):
            expected = tensor.clone()
            if "box_predictor.bbox_pred" in key:
                expected[:4] = 0  # of the background, which nothing reads
            if "mask_fcn_logits" in key:
                expected[:1] = 0
            assert torch.equal(found[key], expected), key


@pytest.mark.slow
def test_convert_names_the_epsilon_of_the_published_weights(
    state_dict: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.pth"
    torch.save(state_dict, file)
    run(convert, file, tmp_path / "b.safetensors", "--to", "torchvision")
    assert "frozen_batch_norm_eps" not in capsys.readouterr().out
    monkeypatch.setattr(enums, "hash_in_name", lambda name: sha256_of(file)[:8])
    run(convert, file, tmp_path / "c.safetensors", "--to", "torchvision")
    assert "Conventions(frozen_batch_norm_eps=0.0)" in capsys.readouterr().out


def test_convert_loses_nothing(tmp_path: Path) -> None:
    ours, other = tmp_path / "a.pth", tmp_path / "b.pth"
    for path in (ours, other):
        write_state_dict({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"a\.pth exists: choose another output, it is the input"):
        run(convert, ours, ours, "--to", "detectron2", "--overwrite")
    with pytest.raises(ValueError, match=r"b\.pth exists: .*--overwrite"):
        run(convert, ours, other, "--to", "detectron2")


@pytest.mark.slow
def test_convert_names_the_file(tmp_path: Path) -> None:
    write_state_dict({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: the keys fit no known layout: a"):
        run(convert, tmp_path / "a.pth", tmp_path / "b.pth", "--to", "detectron2")
    assert not (tmp_path / "b.pth").exists()


def test_show(
    state_dict: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_state_dict(state_dict, tmp_path / "a.safetensors")
    assert run(show, tmp_path / "a.safetensors", "--all") == 0
    shown = capsys.readouterr().out
    for line in (
        "layout:  torchvision\n",
        "model:   the keys of maskrcnn_resnet50_fpn\n",
        "classes: 3 with the background\n",
        "input:   3 channels\n",
        "  rpn.head.cls_logits.bias  [3] torch.float32\n",
    ):
        assert line in shown


def test_show_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig(architecture="small", weights="none")
    content = {
        "model": build_model(config, 3).state_dict(),
        "config": {"model": asdict(config)},
        "step": 12,
        "class_names": {1: "cat", 2: "dog"},
        "category_labels": {1: 1, 2: 2},
    }
    save_checkpoint(content, tmp_path / "best.pt")
    assert run(show, tmp_path / "best.pt") == 0
    shown = capsys.readouterr().out
    assert "run:     small, step 12" in shown and "classes: cat, dog" in shown


def test_show_what_fits_nothing(
    state_dict: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {
        "roi_heads.extra.weight" if "fc6.weight" in k else k: t for k, t in state_dict.items()
    }
    broken["rpn.head.cls_logits.bias"] = torch.tensor([1.0, float("nan"), 0.0])
    write_state_dict(broken, tmp_path / "a.pth")
    assert run(show, tmp_path / "a.pth") == 1
    shown = capsys.readouterr().out
    assert "nearest is maskrcnn_resnet50_fpn, with 1 missing, 1 unexpected: missing roi" in shown
    assert "NaN or infinite values in 1 tensors: rpn.head.cls_logits.bias" in shown
    foreign = {"backbone.bottom_up.stem.conv1.weight": torch.zeros(1), "a.b": torch.zeros(1)}
    write_state_dict(foreign, tmp_path / "c.pth")
    assert run(show, tmp_path / "c.pth") == 1
    assert "none that is known: 1 keys are not in that layout: a.b" in capsys.readouterr().out
    write_state_dict({"a": torch.zeros(1)}, tmp_path / "b.pth")
    assert run(show, tmp_path / "b.pth") == 1
    assert "layout:  none that is known (a)" in capsys.readouterr().out
