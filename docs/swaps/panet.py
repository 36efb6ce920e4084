"""PANet's bottom-up path after an FPN (Liu et al. 2018, "Path Aggregation Network", section 3.1).

It brings fine details to the coarse levels through a few layers in place of the whole backbone.
The paper's adaptive feature pooling (section 3.2) is another part, ``box_roi_pool``.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.backbone import BackboneWithFPN
from maskrcnn_scratch.builders.small import small_maskrcnn


def conv(channels: int, stride: int) -> nn.Sequential:
    """3x3 convolution with ReLU."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, stride, padding=1), nn.ReLU(inplace=True))


class PANetBackbone(nn.Module):
    """The levels of an FPN, each joined with the finer ones; names and shapes stay the same.

    Args:
        inner: any backbone with an FPN whose last level, ``"pool"``, is subsampled.
    """

    def __init__(self, inner: BackboneWithFPN, levels: int = 4) -> None:
        super().__init__()
        self.inner = inner
        self.out_channels = inner.out_channels
        self.down = nn.ModuleList(conv(self.out_channels, 2) for _ in range(levels - 1))
        self.fuse = nn.ModuleList(conv(self.out_channels, 1) for _ in range(levels - 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pyramid = self.inner(images)  # "0" to "3", and "pool"
        names = [name for name in pyramid if name != "pool"]
        joined = {names[0]: pyramid[names[0]]}  # N2 is P2
        for finer, name, down, fuse in zip(names, names[1:], self.down, self.fuse, strict=False):
            joined[name] = fuse(down(joined[finer]) + pyramid[name])
        return joined | {"pool": F.max_pool2d(joined[names[-1]], kernel_size=1, stride=2)}


def build(num_classes: int, **options: Any) -> MaskRCNN:
    backbone = small_maskrcnn(num_classes).backbone
    return small_maskrcnn(num_classes, backbone=PANetBackbone(backbone), **options)
