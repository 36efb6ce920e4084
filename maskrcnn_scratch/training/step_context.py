"""What surrounds a training step: its precision and its random numbers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> Any:
    """Context with the precision of the configuration."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def seed_torch(*parts: int) -> None:
    """Seeds torch on all devices with a hash of the numbers."""
    seed = np.random.SeedSequence(parts).generate_state(1, np.uint64)
    torch.manual_seed(int(seed[0]))
