"""The core needs only torch, numpy and pillow, and importing the package imports none of them."""

from __future__ import annotations

import subprocess
import sys

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
