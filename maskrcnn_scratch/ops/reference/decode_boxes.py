"""Decoded boxes by the functions of ``ops.boxes``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from maskrcnn_scratch.ops.boxes import BoxCoder, clip_boxes_to_image, has_min_size


def decode_boxes(
    deltas: Tensor,
    references: Tensor,
    image_sizes: Tensor,
    weights: Sequence[float],
    bbox_xform_clip: float,
    min_size: float,
) -> tuple[Tensor, Tensor]:
    """``[N, K, 4]``, ``[N, K, 4]``, ``[N, 2]`` -> boxes ``[N, K, 4]``, bool ``[N, K]``."""
    weight_x, weight_y, weight_w, weight_h = weights
    box_coder = BoxCoder((weight_x, weight_y, weight_w, weight_h), bbox_xform_clip)
    boxes = clip_boxes_to_image(box_coder.decode(deltas, references), image_sizes)
    return boxes, has_min_size(boxes, min_size)
