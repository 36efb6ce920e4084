"""Each kernel once more in plain PyTorch: to read, to test against, to run where none is built.

Functions have the schemas of the kernels (``csrc/schema.cpp``); the conventions stand in the
docstrings of the wrappers in ``maskrcnn_scratch.ops``.
"""

from maskrcnn_scratch.ops.reference.conv3x3 import conv3x3
from maskrcnn_scratch.ops.reference.max_iou import max_iou
from maskrcnn_scratch.ops.reference.nms import nms_padded
from maskrcnn_scratch.ops.reference.paste_masks import paste_masks, paste_masks_packed
from maskrcnn_scratch.ops.reference.roi_align import (
    multiscale_roi_align,
    multiscale_roi_align_backward,
)
from maskrcnn_scratch.ops.reference.top_k import top_k_of_levels

__all__ = [
    "conv3x3",
    "max_iou",
    "multiscale_roi_align",
    "multiscale_roi_align_backward",
    "nms_padded",
    "paste_masks",
    "paste_masks_packed",
    "top_k_of_levels",
]
