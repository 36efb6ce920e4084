"""Mask R-CNN with a ResNet-50-FPN, rebuilt from its papers; ``mask_rcnn.py`` is where to start.

The names below are loaded when they are first asked for, so that ``import maskrcnn_scratch`` and
``maskrcnn --help`` cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskrcnn_scratch.backbone import (
        BackboneWithFPN,
        FeaturePyramidNetwork,
        FrozenBatchNorm2d,
        resnet_fpn_backbone,
    )
    from maskrcnn_scratch.builders import (
        fasterrcnn_resnet50_fpn,
        fasterrcnn_resnet50_fpn_v2,
        load_model,
        maskrcnn_resnet50_fpn,
        maskrcnn_resnet50_fpn_v2,
    )
    from maskrcnn_scratch.conventions import Conventions
    from maskrcnn_scratch.inference.predictor import Predictor
    from maskrcnn_scratch.mask_rcnn import FasterRCNN, GeneralizedRCNN, MaskRCNN
    from maskrcnn_scratch.roi_heads import (
        FastRCNNConvFCHead,
        FastRCNNPredictor,
        MaskRCNNHeads,
        MaskRCNNPredictor,
        MultiScaleRoIAlign,
        TwoMLPHead,
    )
    from maskrcnn_scratch.rpn import AnchorGenerator, RPNHead
    from maskrcnn_scratch.training.build_model import load_trained
    from maskrcnn_scratch.weights import (
        FasterRCNN_ResNet50_FPN_V2_Weights,
        FasterRCNN_ResNet50_FPN_Weights,
        MaskRCNN_ResNet50_FPN_V2_Weights,
        MaskRCNN_ResNet50_FPN_Weights,
        ResNet50_Weights,
    )

_MODULES = {
    "backbone": (
        "BackboneWithFPN",
        "FeaturePyramidNetwork",
        "FrozenBatchNorm2d",
        "resnet_fpn_backbone",
    ),
    "builders": (
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "load_model",
        "maskrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn_v2",
    ),
    "conventions": ("Conventions",),
    "inference.predictor": ("Predictor",),
    "mask_rcnn": ("FasterRCNN", "GeneralizedRCNN", "MaskRCNN"),
    "roi_heads": (
        "FastRCNNConvFCHead",
        "FastRCNNPredictor",
        "MaskRCNNHeads",
        "MaskRCNNPredictor",
        "MultiScaleRoIAlign",
        "TwoMLPHead",
    ),
    "rpn": ("AnchorGenerator", "RPNHead"),
    "training.build_model": ("load_trained",),
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
    "Conventions",
    "FastRCNNConvFCHead",
    "FastRCNNPredictor",
    "FasterRCNN",
    "FasterRCNN_ResNet50_FPN_V2_Weights",
    "FasterRCNN_ResNet50_FPN_Weights",
    "FeaturePyramidNetwork",
    "FrozenBatchNorm2d",
    "GeneralizedRCNN",
    "MaskRCNN",
    "MaskRCNNHeads",
    "MaskRCNNPredictor",
    "MaskRCNN_ResNet50_FPN_V2_Weights",
    "MaskRCNN_ResNet50_FPN_Weights",
    "MultiScaleRoIAlign",
    "Predictor",
    "RPNHead",
    "ResNet50_Weights",
    "TwoMLPHead",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "load_model",
    "load_trained",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "resnet_fpn_backbone",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
