"""Mask R-CNN with a ResNet-50-FPN, rebuilt from its papers; start at ``generalized_rcnn.py``.

The names below are imported on first use, so that ``import maskrcnn_scratch`` and
``maskrcnn --help`` do not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskrcnn_scratch.backbone import (
        BackboneWithFPN,
        FeaturePyramidNetwork,
        FrozenBatchNorm2d,
        IntermediateLayerGetter,
        LastLevelMaxPool,
        LastLevelP6P7,
        mobilenet_backbone,
        resnet_fpn_backbone,
    )
    from maskrcnn_scratch.builders.from_config import load_trained
    from maskrcnn_scratch.builders.resnet50_fpn import (
        fasterrcnn_resnet50_fpn,
        fasterrcnn_resnet50_fpn_v2,
        load_model,
        maskrcnn_resnet50_fpn,
        maskrcnn_resnet50_fpn_v2,
    )
    from maskrcnn_scratch.conventions import Conventions
    from maskrcnn_scratch.faster_rcnn import FasterRCNN
    from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
    from maskrcnn_scratch.inference.predictor import Predictor
    from maskrcnn_scratch.mask_rcnn import MaskRCNN
    from maskrcnn_scratch.ops.boxes import BoxCoder
    from maskrcnn_scratch.roi_heads import (
        FastRCNNConvFCHead,
        FastRCNNPredictor,
        MaskRCNNHeads,
        MaskRCNNPredictor,
        MultiScaleRoIAlign,
        RoIHeads,
        TwoMLPHead,
    )
    from maskrcnn_scratch.rpn import (
        AnchorGenerator,
        RegionProposalNetwork,
        RPNHead,
    )
    from maskrcnn_scratch.structures import ImageList
    from maskrcnn_scratch.targets.matcher import Matcher
    from maskrcnn_scratch.targets.sampler import BalancedPositiveNegativeSampler
    from maskrcnn_scratch.transform import GeneralizedRCNNTransform
    from maskrcnn_scratch.weights import (
        FasterRCNN_ResNet50_FPN_V2_Weights,
        FasterRCNN_ResNet50_FPN_Weights,
        MaskRCNN_ResNet50_FPN_V2_Weights,
        MaskRCNN_ResNet50_FPN_Weights,
        ResNet50_Weights,
    )

__version__ = "0.2.0"

_MODULES = {
    "backbone": (
        "BackboneWithFPN",
        "FeaturePyramidNetwork",
        "FrozenBatchNorm2d",
        "IntermediateLayerGetter",
        "LastLevelMaxPool",
        "LastLevelP6P7",
        "mobilenet_backbone",
        "resnet_fpn_backbone",
    ),
    "builders.resnet50_fpn": (
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "load_model",
        "maskrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn_v2",
    ),
    "conventions": ("Conventions",),
    "inference.predictor": ("Predictor",),
    "faster_rcnn": ("FasterRCNN",),
    "generalized_rcnn": ("GeneralizedRCNN",),
    "mask_rcnn": ("MaskRCNN",),
    "roi_heads": (
        "FastRCNNConvFCHead",
        "FastRCNNPredictor",
        "MaskRCNNHeads",
        "MaskRCNNPredictor",
        "MultiScaleRoIAlign",
        "RoIHeads",
        "TwoMLPHead",
    ),
    "rpn": (
        "AnchorGenerator",
        "RPNHead",
        "RegionProposalNetwork",
    ),
    "builders.from_config": ("load_trained",),
    "transform": ("GeneralizedRCNNTransform",),
    "structures": ("ImageList",),
    "targets.matcher": ("Matcher",),
    "targets.sampler": ("BalancedPositiveNegativeSampler",),
    "ops.boxes": ("BoxCoder",),
    "weights": (
        "FasterRCNN_ResNet50_FPN_V2_Weights",
        "FasterRCNN_ResNet50_FPN_Weights",
        "MaskRCNN_ResNet50_FPN_V2_Weights",
        "MaskRCNN_ResNet50_FPN_Weights",
        "ResNet50_Weights",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AnchorGenerator",
    "BackboneWithFPN",
    "BalancedPositiveNegativeSampler",
    "BoxCoder",
    "Conventions",
    "FastRCNNConvFCHead",
    "FastRCNNPredictor",
    "FasterRCNN",
    "FasterRCNN_ResNet50_FPN_V2_Weights",
    "FasterRCNN_ResNet50_FPN_Weights",
    "FeaturePyramidNetwork",
    "FrozenBatchNorm2d",
    "GeneralizedRCNN",
    "GeneralizedRCNNTransform",
    "ImageList",
    "IntermediateLayerGetter",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "MaskRCNN",
    "MaskRCNNHeads",
    "MaskRCNNPredictor",
    "MaskRCNN_ResNet50_FPN_V2_Weights",
    "MaskRCNN_ResNet50_FPN_Weights",
    "Matcher",
    "MultiScaleRoIAlign",
    "Predictor",
    "RPNHead",
    "RegionProposalNetwork",
    "ResNet50_Weights",
    "RoIHeads",
    "TwoMLPHead",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "load_model",
    "load_trained",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "mobilenet_backbone",
    "resnet_fpn_backbone",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
