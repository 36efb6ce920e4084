"""How many operators reach the GPU, counted without one: each is a kernel that the host launches.

The model is small, with fewer convolutions than a ResNet-50; what follows the backbone is the same.
"""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch

from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.targets.sampler import use_device_sampler
from tests.no_sync import fake_gpu, to_fake_gpu
from tests.test_no_sync import batch, small_model
from tools.benchmarks.launches import count_operators

# A change that needs more must say why. With torch 2.14; another version may split an operator.
PER_IMAGE = 160
PER_TRAINING_STEP = 525  # forward pass and losses of two images


def inference() -> Counter[str]:
    """From the image to the counts of its detections."""
    with fake_gpu():
        model = to_fake_gpu(small_model().eval())
        images, _ = batch("cuda")

        def run() -> None:
            with torch.no_grad():
                padded, _ = model.transform(images[:1])
                model.run_batch(padded)

        return count_operators(run)


def losses() -> Counter[str]:
    with fake_gpu():
        model = to_fake_gpu(small_model())
        model.transform.eval()
        use_device_sampler(model)
        images, targets = batch("cuda", objects=(3, 2))
        return count_operators(lambda: model.losses(images, targets))


def test_operators_per_image() -> None:
    counts = inference()
    assert counts["top_k_of_levels"] == 1 and counts["nms_padded"] == 2
    assert counts["decode_boxes"] == 2 and counts["fpn_levels"] == 2
    assert counts["topk"] == 0
    assert counts.total() <= PER_IMAGE, counts


def test_operators_per_training_step() -> None:
    counts = losses()
    assert counts["max_iou"] == 4  # anchors and proposals of each image
    assert counts.total() <= PER_TRAINING_STEP, counts


def test_reference_implementations_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the counts above see what an op saves."""
    for name in ("top_k", "max_iou"):
        monkeypatch.setattr(sys.modules[f"maskrcnn_scratch.ops.{name}"], "DEVICES", ("cpu",))
    for name in ("decode_boxes", "fpn_levels"):
        monkeypatch.setattr(sys.modules[f"maskrcnn_scratch.ops.{name}"], "kernels", reference)
    assert inference().total() >= PER_IMAGE + 100
    assert losses().total() >= PER_TRAINING_STEP + 100
