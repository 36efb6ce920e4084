"""Backbones: a ResNet, a feature pyramid on top of it, and both as one module."""

from maskrcnn_scratch.backbone.fpn import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)
from maskrcnn_scratch.backbone.frozen_batch_norm import FrozenBatchNorm2d
from maskrcnn_scratch.backbone.intermediate_layer_getter import IntermediateLayerGetter
from maskrcnn_scratch.backbone.mobilenet import mobilenet_backbone
from maskrcnn_scratch.backbone.resnet import BasicBlock, Bottleneck, ResNet, resnet
from maskrcnn_scratch.backbone.resnet_fpn import BackboneWithFPN, resnet_fpn_backbone

__all__ = [
    "BackboneWithFPN",
    "BasicBlock",
    "Bottleneck",
    "FeaturePyramidNetwork",
    "FrozenBatchNorm2d",
    "IntermediateLayerGetter",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "ResNet",
    "mobilenet_backbone",
    "resnet",
    "resnet_fpn_backbone",
]
