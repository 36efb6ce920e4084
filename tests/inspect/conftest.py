"""One batch of two images of different sizes, through a small model with random weights."""

from __future__ import annotations

import pytest
import torch

from maskrcnn_scratch.structures import StageOutputs


@pytest.fixture(scope="session")
def images(photographs):
    """Two photographs ``[3, H, W]``, reduced."""
    return [
        torch.from_numpy(photographs[name][::4, ::4].copy()).permute(2, 0, 1) / 255
        for name in ("cat", "astronaut")
    ]


@pytest.fixture(scope="session")
def stages(small_model, images) -> StageOutputs:
    with torch.no_grad():
        return small_model.run_stages(images)
