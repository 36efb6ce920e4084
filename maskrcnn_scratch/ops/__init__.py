"""The operators that are written in C++ and CUDA, and box geometry.

Each operator has a wrapper here, a pure-PyTorch reference implementation in ``ops.reference``, and
kernels in ``csrc/``, whose README describes how an operator is built.
"""

from maskrcnn_scratch.ops import boxes, reference
from maskrcnn_scratch.ops.conv3x3 import (
    can_conv3x3,
    conv3x3,
    conv3x3_weight_gradient,
    transform_conv3x3_weight,
)
from maskrcnn_scratch.ops.decode_boxes import decode_boxes
from maskrcnn_scratch.ops.fpn_levels import fpn_levels
from maskrcnn_scratch.ops.max_iou import max_iou
from maskrcnn_scratch.ops.nms import batched_nms, batched_nms_padded, nms, nms_padded
from maskrcnn_scratch.ops.paste_masks import paste_masks, paste_masks_packed, paste_masks_rle
from maskrcnn_scratch.ops.roi_align import multiscale_roi_align, roi_align
from maskrcnn_scratch.ops.top_k import top_k_of_levels

__all__ = [
    "batched_nms",
    "batched_nms_padded",
    "boxes",
    "can_conv3x3",
    "conv3x3",
    "conv3x3_weight_gradient",
    "decode_boxes",
    "fpn_levels",
    "max_iou",
    "multiscale_roi_align",
    "nms",
    "nms_padded",
    "paste_masks",
    "paste_masks_packed",
    "paste_masks_rle",
    "reference",
    "roi_align",
    "top_k_of_levels",
    "transform_conv3x3_weight",
]
