"""The best of many values, level by level: what the RPN picks its candidates with.

Letters: ``N`` images, ``A`` anchors over all levels, ``K`` of them picked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_scratch.host_sync import can_have_dynamic_shapes
from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops._library import NAMESPACE, compiled, kernels


def top_k_of_levels(values: Tensor, level_sizes: Sequence[int], k: int) -> Tensor:
    """Indices of the ``k`` largest values of each level (or all that it has), best first.

    NaN is the largest, as in ``torch.topk``. The CPU has a kernel of its own, five times as fast as
    ``torch.topk``, which runs elsewhere and in graphs that are compiled or exported.

    Args:
        values: ``[N, A]``, float32 or float64.
        level_sizes: how many of them belong to each level; they add up to ``A``.
        k: how many to pick of each level.

    Returns:
        int64 ``[N, K]`` into ``[0, A)``, level by level. Of equals, which bfloat16 makes many,
        the kernel takes some from everywhere, always the same.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
    """
    on_cpu = can_have_dynamic_shapes(values)
    return (kernels if on_cpu else reference).top_k_of_levels(values, list(level_sizes), k)


def _fake(values: Tensor, level_sizes: Sequence[int], k: int) -> Tensor:
    picked = sum(min(k, size) for size in level_sizes)
    return values.new_empty((values.shape[0], picked), dtype=torch.int64)


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::top_k_of_levels", _fake)
