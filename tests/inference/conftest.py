"""A model whose detections mean something, for all files of this folder."""

from __future__ import annotations

import pytest
from torch import Tensor

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
from maskrcnn_scratch.parity.photographs import photographs


@pytest.fixture(scope="session")
def photograph() -> Tensor:
    return photographs()[0]


@pytest.fixture(scope="session")
def model(photograph: Tensor) -> MaskRCNN:
    """Calibrated on ``photograph``; tests leave it as it is."""
    return calibrated_maskrcnn(0, photograph, min_size=160, max_size=266)
