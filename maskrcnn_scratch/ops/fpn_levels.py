"""The pyramid level that each RoI is pooled from; the formula is in ``reference/fpn_levels.py``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops._library import NAMESPACE, compiled, kernels
from maskrcnn_scratch.structures import at_least_float32

LEVEL_EPSILON = 1e-6  # torchvision's: keeps a box of exactly 224 x 224 at level 4


def fpn_levels(
    boxes: Tensor,
    finest: int,
    coarsest: int,
    canonical_scale: float = 224,
    canonical_level: float = 4,
) -> Tensor:
    """``k = floor(k0 + log2(sqrt(w h) / 224))`` of each box (FPN, Eq. 1), within the levels.

    Boxes of negative area belong to the finest level. On CUDA a kernel runs; on other devices, and
    in compiled or exported graphs, the reference implementation.

    Args:
        boxes: ``[R, 4]``, float32 or float64 (half types are computed in float32: a large area
            would overflow).
        finest, coarsest: the first and last level; level ``k`` has a stride of ``2^k`` pixels.
        canonical_scale: side in pixels of a box of ``canonical_level``, the paper's 224.
        canonical_level: the paper's ``k0``.

    Returns:
        int64 ``[R]``: 0 for the finest level.

    Raises:
        RuntimeError: a shape or dtype that does not fit, or ``coarsest`` below ``finest``.
    """
    in_graph = torch.compiler.is_compiling() or is_tracing()
    use_kernel = boxes.device.type == "cuda" and not in_graph
    return (kernels if use_kernel else reference).fpn_levels(
        at_least_float32(boxes), finest, coarsest, canonical_scale, canonical_level, LEVEL_EPSILON
    )


def _fake(
    boxes: Tensor,
    finest: int,
    coarsest: int,
    canonical_scale: float,
    canonical_level: float,
    epsilon: float,
) -> Tensor:
    return boxes.new_empty(boxes.shape[0], dtype=torch.int64)


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::fpn_levels", _fake)
