"""On a GPU: no host synchronisation, as reported by CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from maskrcnn_scratch.targets.sampler import use_device_sampler
from tests.test_no_sync import batch, small_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextmanager
def synchronisation_refused() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_planted_synchronisation_is_refused() -> None:
    x = torch.ones(4, device="cuda")
    with synchronisation_refused(), pytest.raises(RuntimeError, match="synchronizing"):
        x.sum().item()


@torch.no_grad()
def test_inference_up_to_the_counts_does_not_synchronise() -> None:
    model = small_model().eval().cuda()
    images, _ = batch("cuda")
    expected = model(images)  # and allocations, and the choice of algorithms
    with synchronisation_refused():
        padded, _ = model.transform(images)
        stages = model.run_batch(padded)
    assert stages.detections.counts.tolist() == [len(result["scores"]) for result in expected]


def test_a_training_step_does_not_synchronise() -> None:
    model = small_model().cuda()
    model.transform.eval()  # in training it draws a size on the host
    images, targets = batch("cuda")
    use_device_sampler(model)
    torch.stack(list(model.losses(images, targets).values())).sum().backward()
    model.zero_grad()
    with synchronisation_refused():
        losses = torch.stack(list(model.losses(images, targets).values()))
        losses.sum().backward()
    assert losses.isfinite().all() and model.backbone.body.conv1.weight.grad.norm() > 0
