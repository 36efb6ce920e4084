"""When the host may look at a tensor's values, and what it saves.

On the CPU, looking at values is free: the stages then compute only the entries that are valid. On a
GPU it is a synchronisation: the host waits until all queued kernels have run, and queues nothing
meanwhile. In a graph that is compiled, traced or exported, a size that depends on values is not
known. In both cases the stages compute every entry, padding included, and mask the result.

The helpers below make that choice, so that the stages read the same either way. Shapes: see
``structures``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from maskrcnn_scratch.structures import valid_entries


def can_sync(tensor: Tensor) -> bool:
    """Whether reading values costs nothing: on the CPU, outside of ``torch.compile`` and export."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def can_have_dynamic_shapes(tensor: Tensor) -> bool:
    """Whether shapes may depend on values too: a TorchScript trace would keep those that it saw."""
    return can_sync(tensor) and not is_tracing()


def entries_to_compute(wanted: Tensor) -> Tensor:
    """Indices ``[R]`` of the true entries of ``wanted [K]`` on the CPU; all ``K`` elsewhere."""
    if can_sync(wanted):
        return wanted.nonzero().squeeze(1)
    return torch.arange(wanted.shape[0], device=wanted.device)


def compute_valid(compute: Callable[..., Tensor], valid: Tensor, *values: Tensor) -> Tensor:
    """``compute`` of the valid entries of ``values``, ``[K, ...]`` each; 0 for the others.

    Args:
        compute: maps ``[R, ...]`` to ``[R, ...]``, entry by entry; ``R`` may be 0.
        valid: bool ``[K]``. On the CPU only these entries are computed, elsewhere all.
    """
    if can_sync(valid):
        entries = entries_to_compute(valid)  # [R]
        computed = compute(*(of_all[entries] for of_all in values))
        shape = (valid.shape[0], *computed.shape[1:])
        # The reshape tells a TorchScript trace the shape, which index_copy does not.
        return computed.new_zeros(shape).index_copy(0, entries, computed).reshape(shape)
    computed = compute(*values)
    return computed.where(valid.reshape(-1, *[1] * (computed.dim() - 1)), 0)


def pack_entries(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """``entries_to_compute`` image by image, for ``wanted [N, K]``, padded to ``K'`` entries.

    Returns:
        indices: int64 ``[N, K']`` in ``[0, K)``, ascending.
        valid: bool ``[N, K']``, false for padding.
    """
    if not can_have_dynamic_shapes(wanted):
        return torch.arange(wanted.shape[1], device=wanted.device).expand_as(wanted), wanted
    counts = wanted.sum(1)
    valid = valid_entries(counts, max(1, int(counts.max())))  # [N, K'], at least one for gather
    indices = torch.zeros_like(valid, dtype=torch.int64)
    indices[valid] = wanted.nonzero()[:, 1]
    return indices, valid
