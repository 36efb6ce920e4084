"""The second stage: RoI pooling, box head, mask head."""

from maskrcnn_scratch.roi_heads.box_head import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from maskrcnn_scratch.roi_heads.mask_head import MaskRCNNHeads, MaskRCNNPredictor
from maskrcnn_scratch.roi_heads.pooler import MultiScaleRoIAlign
from maskrcnn_scratch.roi_heads.roi_heads import RoIHeads

__all__ = [
    "FastRCNNConvFCHead",
    "FastRCNNPredictor",
    "MaskRCNNHeads",
    "MaskRCNNPredictor",
    "MultiScaleRoIAlign",
    "RoIHeads",
    "TwoMLPHead",
]
