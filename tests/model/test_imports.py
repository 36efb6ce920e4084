"""The core needs only torch, numpy and pillow, and importing the package imports none of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model
from maskrcnn_scratch.checkpoint import save_checkpoint

OPTIONAL = (
    "torchvision",
    "tyro",
    "tqdm",
    "matplotlib",
    "hotcoco",
    "onnx",
    "tensorboard",
    "safetensors",
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import maskrcnn_scratch, sys; print('torch' in sys.modules)"
    assert run(code) == "False"


@pytest.mark.slow
def test_the_model_runs_without_any_optional_package() -> None:
    code = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None  # importing it fails
import torch
from maskrcnn_scratch import maskrcnn_resnet50_fpn, Predictor
model = maskrcnn_resnet50_fpn(
    weights=None, weights_backbone=None, min_size=64, max_size=64, rpn_post_nms_top_n_test=10
)
print(sorted(Predictor(model)(torch.rand(3, 60, 64))))
"""
    assert run(code) == "['boxes', 'labels', 'masks', 'scores']"


@pytest.mark.slow
def test_predict_does_not_import_the_compiler(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture="small", weights="none", anchor_sizes=(8, 16, 32, 64, 128),
        min_size=(64,), max_size=64, post_nms_top_n=10,
    )  # fmt: skip
    checkpoint = {
        "config": {"model": asdict(config)},
        "class_names": {1: "cat"},
        "category_labels": {1: 1},
        "model": build_model(config, 2).state_dict(),
    }
    save_checkpoint(checkpoint, tmp_path / "best.pt")
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    command = ["predict", "image.png", "--weights", "best.pt", "--out", "out", "--winograd"]
    code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
from maskrcnn_scratch.cli import main
assert main({command}) == 0
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    assert run(code).splitlines()[-1] == "[]"
