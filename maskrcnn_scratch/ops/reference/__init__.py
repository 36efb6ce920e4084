"""Reference implementations of the kernels, in PyTorch (run lengths: in numpy).

They are there to be read, to test the kernels against, and to run where no kernel was built or
exists for the device. The functions have the schemas of ``csrc/schema.cpp``. Shapes and conventions
are described by the wrappers in ``maskrcnn_scratch.ops``.
"""

from maskrcnn_scratch.ops.reference.conv3x3 import conv3x3, conv3x3_weight_gradient
from maskrcnn_scratch.ops.reference.decode_boxes import decode_boxes
from maskrcnn_scratch.ops.reference.fpn_levels import fpn_levels
from maskrcnn_scratch.ops.reference.max_iou import max_iou
from maskrcnn_scratch.ops.reference.nms import nms_padded
from maskrcnn_scratch.ops.reference.paste_masks import paste_masks, paste_masks_packed
from maskrcnn_scratch.ops.reference.rle import (
    rle_area,
    rle_bounding_box,
    rle_decode,
    rle_encode,
    rle_from_counts,
    rle_from_packed,
    rle_from_polygon,
    rle_merge,
    rle_paste,
)
from maskrcnn_scratch.ops.reference.roi_align import (
    multiscale_roi_align,
    multiscale_roi_align_backward,
)
from maskrcnn_scratch.ops.reference.top_k import top_k_of_levels

__all__ = [
    "conv3x3",
    "conv3x3_weight_gradient",
    "decode_boxes",
    "fpn_levels",
    "max_iou",
    "multiscale_roi_align",
    "multiscale_roi_align_backward",
    "nms_padded",
    "paste_masks",
    "paste_masks_packed",
    "rle_area",
    "rle_bounding_box",
    "rle_decode",
    "rle_encode",
    "rle_from_counts",
    "rle_from_packed",
    "rle_from_polygon",
    "rle_merge",
    "rle_paste",
    "top_k_of_levels",
]
