"""Top-k of each level by ``torch.topk``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def top_k_of_levels(values: Tensor, level_sizes: Sequence[int], k: int) -> Tensor:
    """``[N, A]`` -> indices ``[N, K]`` in ``[0, A)``."""
    indices, start = [], 0
    for level in values.split(list(level_sizes), dim=1):  # [N, A_l]
        indices.append(level.topk(min(k, level.shape[1]), dim=1).indices + start)
        start += level.shape[1]
    return torch.cat(indices, dim=1)
