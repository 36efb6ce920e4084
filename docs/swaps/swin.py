"""Swin Transformer as the backbone (Liu et al. 2021; with Mask R-CNN in section 4.2).

torchvision's implementation, whose windows are padded, so that images may have any size. Needs
``pip install torchvision``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import SwinTransformer

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.backbone import (
    FeaturePyramidNetwork,
    IntermediateLayerGetter,
    LastLevelMaxPool,
)
from maskrcnn_scratch.builders.small import small_maskrcnn


class SwinBackbone(nn.Module):
    """``[N, 3, H, W]`` -> ``{"0": [N, F, H/4, W/4], ..., "pool": [N, F, H/64, W/64]}``.

    ``SwinBackbone(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 256)`` is Swin-T with the usual FPN.

    Args:
        width: channels of the first stage; each later stage has twice as many.
        depths, heads: blocks, and attention heads, of each stage.
        window: side of a window, in locations.
        out_channels: channels of every level, ``F``.
    """

    def __init__(
        self,
        width: int = 32,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 4, 8),
        window: int = 4,
        out_channels: int = 64,
    ) -> None:
        super().__init__()
        swin = SwinTransformer([4, 4], width, list(depths), list(heads), [window, window])
        # Its children are the patches, stage 1, merging, stage 2, merging, ...
        self.body = IntermediateLayerGetter(swin.features, {"1": "0", "3": "1", "5": "2", "7": "3"})
        channels = [width * 2**stage for stage in range(4)]
        self.norms = nn.ModuleList(nn.LayerNorm(number) for number in channels)
        self.fpn = FeaturePyramidNetwork(channels, out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        stages = self.body(images)  # [N, H_l, W_l, channels]
        return self.fpn(
            {
                name: norm(stage).permute(0, 3, 1, 2)
                for norm, (name, stage) in zip(self.norms, stages.items(), strict=True)
            }
        )


def build(num_classes: int, **options: Any) -> MaskRCNN:
    return small_maskrcnn(num_classes, backbone=SwinBackbone(), **options)
