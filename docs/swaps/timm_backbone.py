"""Any convolutional network of timm as the backbone (Wightman, "PyTorch Image Models").

``features_only`` returns the maps of each stage and says how many channels they have; an FPN (Lin
et al. 2017) makes one pyramid of them. Needs ``pip install timm``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import timm
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.backbone import FeaturePyramidNetwork, LastLevelMaxPool
from maskrcnn_scratch.builders.small import small_maskrcnn


class TimmBackbone(nn.Module):
    """``[N, 3, H, W]`` -> ``{"0": [N, F, H/4, W/4], ..., "pool": [N, F, H/64, W/64]}``.

    Args:
        name: of a model of ``timm.list_models()`` with stages of strides 4 to 32.
        out_channels: channels of every level, ``F``.
        pretrained: starts from timm's weights, which are downloaded.
    """

    def __init__(
        self, name: str = "mobilenetv3_small_050", out_channels: int = 64, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, pretrained=pretrained)
        strides = self.body.feature_info.reduction()
        self.stages = [strides.index(stride) for stride in (4, 8, 16, 32)]
        channels = [self.body.feature_info.channels()[stage] for stage in self.stages]
        self.fpn = FeaturePyramidNetwork(channels, out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        return self.fpn(OrderedDict((str(n), maps[stage]) for n, stage in enumerate(self.stages)))


def build(num_classes: int, **options: Any) -> MaskRCNN:
    return small_maskrcnn(num_classes, backbone=TimmBackbone(), **options)
