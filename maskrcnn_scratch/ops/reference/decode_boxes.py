"""Decoded boxes by the functions of ``ops.boxes``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from maskrcnn_scratch.ops.boxes import BoxCoder, clip_boxes_to_image, has_min_size
from maskrcnn_scratch.structures import gather_entries


def decode_boxes(
    deltas: Tensor,
    delta_indices: Tensor,
    references: Tensor,
    reference_indices: Tensor,
    image_sizes: Tensor,
    weights: Sequence[float],
    bbox_xform_clip: float,
    min_size: float,
) -> tuple[Tensor, Tensor]:
    """``[N, A, 4]`` at ``[N, K]``, ``[N, P, 4]`` at ``[N, K]`` -> ``[N, K, 4]``, bool ``[N, K]``.

    ``references [1, P, 4]`` are those of all images.
    """
    deltas = gather_entries(deltas, delta_indices)  # [N, K, 4]
    references = references.expand(deltas.shape[0], -1, -1)
    references = gather_entries(references, reference_indices)  # [N, K, 4]
    weight_x, weight_y, weight_w, weight_h = weights
    box_coder = BoxCoder((weight_x, weight_y, weight_w, weight_h), bbox_xform_clip)
    boxes = clip_boxes_to_image(box_coder.decode(deltas, references), image_sizes)
    return boxes, has_min_size(boxes, min_size)
