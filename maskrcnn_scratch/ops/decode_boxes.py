"""Boxes from the deltas that the model predicts: decoded, clipped to the image, measured.

Shapes: see ``structures``; ``A`` deltas and ``P`` reference boxes per image, which both belong to
the anchors in the RPN, and to the proposals in the RoI heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops._library import DEVICES, NAMESPACE, compiled, kernels
from maskrcnn_scratch.ops.boxes import BoxCoder


def decode_boxes(
    box_coder: BoxCoder,
    deltas: Tensor,
    delta_indices: Tensor,
    references: Tensor,
    reference_indices: Tensor,
    image_sizes: Tensor,
    min_size: float,
) -> tuple[Tensor, Tensor]:
    """Decodes the boxes of candidates, moves their corners into the image and tests their sides.

    It is ``box_coder.decode``, then ``boxes.clip_boxes_to_image``, then ``boxes.has_min_size``. On
    the CPU and on CUDA a kernel does the three. Elsewhere these functions run, as they do in
    compiled or exported graphs, for different dtypes, and where a gradient is needed.

    Args:
        box_coder: gives the weights and the upper limit of dw and dh.
        deltas: ``[N, A, 4]``, float32 or float64.
        delta_indices: of the candidates, int64 ``[N, K]`` in ``[0, A)``.
        references: anchors or proposals, ``[N, P, 4]``, or ``[1, P, 4]`` for all images.
        reference_indices: of the candidates, int64 ``[N, K]`` in ``[0, P)``.
        image_sizes: (height, width) without padding, int64 ``[N, 2]``.
        min_size: length in pixels that both sides of a box must have.

    Returns:
        boxes: ``[N, K, 4]``; NaN where a delta or a reference is.
        has_min_size: bool ``[N, K]``; false for NaN.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; on the CPU also an index out of
            range, which on CUDA gives a box of zeros.
    """
    in_graph = torch.compiler.is_compiling() or is_tracing()
    needs_grad = deltas.requires_grad or references.requires_grad
    has_kernel = deltas.device.type in DEVICES and deltas.dtype == references.dtype
    use_kernel = has_kernel and not (in_graph or needs_grad)
    return (kernels if use_kernel else reference).decode_boxes(
        deltas, delta_indices, references, reference_indices, image_sizes, box_coder.weights,
        box_coder.bbox_xform_clip, min_size,
    )  # fmt: skip


def _fake(
    deltas: Tensor,
    delta_indices: Tensor,
    references: Tensor,
    reference_indices: Tensor,
    image_sizes: Tensor,
    weights: Sequence[float],
    bbox_xform_clip: float,
    min_size: float,
) -> tuple[Tensor, Tensor]:
    shape = delta_indices.shape
    return deltas.new_empty((*shape, 4)), deltas.new_empty(shape, dtype=torch.bool)


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::decode_boxes", _fake)
