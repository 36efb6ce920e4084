"""Top-k within each pyramid level: how the RPN selects the anchors that become candidates.

Shapes: see ``structures``; ``K`` values selected per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops._library import DEVICES, NAMESPACE, compiled, kernels


def top_k_of_levels(values: Tensor, level_sizes: Sequence[int], k: int) -> Tensor:
    """Indices of the ``k`` largest values of each level (or of all, where it has fewer).

    NaN is larger than every number, as in ``torch.topk``. On the CPU and on CUDA the kernels in
    ``csrc/top_k`` run; on other devices, and in compiled or exported graphs, ``torch.topk``.

    Equal values need a rule: bfloat16 scores have many ties at the k-th value. ``torch.topk``
    leaves it open. The kernels break ties by the index times a constant, modulo 2**64, which
    spreads the selected anchors evenly over the image. Breaking them by the lower index would
    select anchors at the top of the image only. The rule is deterministic.

    Args:
        values: ``[N, A]``, float32 or float64.
        level_sizes: number of values per level; they add up to ``A``.
        k: number of values to select per level.

    Returns:
        int64 ``[N, K]`` in ``[0, A)``: level after level, each by descending value. ``K`` is the
        sum of ``min(k, size)`` over the levels, 0 for empty levels.

    Raises:
        RuntimeError: shapes or dtypes that do not fit, negative or wrong sizes.
    """
    in_graph = torch.compiler.is_compiling() or is_tracing()
    use_kernel = values.device.type in DEVICES and not in_graph
    return (kernels if use_kernel else reference).top_k_of_levels(values, list(level_sizes), k)


def _fake(values: Tensor, level_sizes: Sequence[int], k: int) -> Tensor:
    selected = sum(min(k, size) for size in level_sizes)
    return values.new_empty((values.shape[0], selected), dtype=torch.int64)


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::top_k_of_levels", _fake)
