"""int8 against bfloat16: the complete model, and backbone and FPN. Needs torchao."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inference import optimize
from tools.benchmarks.clock import Clock, Timing
from tools.benchmarks.peers import time_peer


@torch.no_grad()
def time_int8(clock: Clock, model: MaskRCNN, image: Tensor) -> Iterator[Timing]:
    """Ours is ``optimize`` in bfloat16, not compiled; theirs is int8, calibrated on the image.

    A ratio below 1 means that int8 is faster. Without torchao the rows say so.
    """
    if clock.device.type != "cpu":
        return
    half = optimize(model, dtype=torch.bfloat16)
    pixels = model.transform([image])[0].tensors

    @cache
    def int8() -> GeneralizedRCNN:
        return optimize(model, dtype="int8", calibration=[image])

    yield time_peer(
        clock, "int8", "complete model, bfloat16 against int8", lambda: half([image]),
        lambda: partial(int8(), [image]),
    )  # fmt: skip
    yield time_peer(
        clock, "int8", "backbone and FPN, bfloat16 against int8", lambda: half.backbone(pixels),
        lambda: partial(int8().backbone, pixels),
    )  # fmt: skip
