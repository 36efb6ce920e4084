"""Group normalisation (Wu and He 2018, "Group Normalization", section 4.2).

It does not depend on the batch, so that training with few images per GPU needs no frozen batch
norm. As in the paper, it is in the backbone, the FPN, the box head (four convolutions and one
linear layer) and the mask head.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.backbone import FeaturePyramidNetwork, LastLevelMaxPool
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.roi_heads import FastRCNNConvFCHead, MaskRCNNHeads


def group_norm(channels: int, groups: int = 16) -> nn.GroupNorm:
    """A ``norm_layer``; the paper has 32 groups."""
    return nn.GroupNorm(groups, channels)


def build(num_classes: int, **options: Any) -> MaskRCNN:
    model = small_maskrcnn(
        num_classes,
        norm_layer=group_norm,
        box_head=FastRCNNConvFCHead((64, 7, 7), (64, 64, 64, 64), (256,), group_norm),
        mask_head=MaskRCNNHeads(64, (64, 64), dilation=1, norm_layer=group_norm),
        **options,
    )
    model.backbone.fpn = FeaturePyramidNetwork(
        (32, 64, 128, 128), 64, LastLevelMaxPool(), norm_layer=group_norm
    )
    return model
