"""Region Proposal Network (Faster R-CNN, section 3): anchors, head, proposals."""

from maskrcnn_scratch.rpn.anchors import AnchorGenerator
from maskrcnn_scratch.rpn.head import RPNHead
from maskrcnn_scratch.rpn.rpn import RegionProposalNetwork, RPNPredictions

__all__ = ["AnchorGenerator", "RPNHead", "RPNPredictions", "RegionProposalNetwork"]
