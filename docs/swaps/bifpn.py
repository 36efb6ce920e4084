"""BiFPN in place of the FPN (Tan et al. 2020, "EfficientDet", section 3).

Information flows top-down and bottom-up, several times. Each node adds its inputs with weights that
it learns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn


class Node(nn.Module):
    """Adds maps of one level, then a separable convolution (section 3.3)."""

    def __init__(self, channels: int, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.conv = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, *maps: Tensor) -> Tensor:
        positive = F.relu(self.weights)  # fast normalized fusion
        weights = positive / (positive.sum() + 1e-4)
        return self.conv(sum(weight * level for weight, level in zip(weights, maps, strict=True)))


class BiFPNLayer(nn.Module):
    """One top-down and one bottom-up pass over ``levels`` maps, finest first (Figure 2 d)."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.top_down = nn.ModuleList(Node(channels, 2) for _ in range(levels - 1))
        self.bottom_up = nn.ModuleList(Node(channels, n) for n in [3] * (levels - 2) + [2])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        between = [*maps]
        for level in range(len(maps) - 2, -1, -1):
            coarser = F.interpolate(between[level + 1], size=maps[level].shape[-2:])
            between[level] = self.top_down[level](maps[level], coarser)
        out = [between[0]]
        for level, node in enumerate(self.bottom_up, 1):
            finer = F.max_pool2d(out[-1], 3, stride=2, padding=1)
            own = [maps[level], between[level]] if level < len(maps) - 1 else [maps[level]]
            out.append(node(*own, finer))
        return out


class BiFPNBackbone(nn.Module):
    """``body`` gives stages of ``in_channels`` by name; the levels keep the names."""

    def __init__(self, body: nn.Module, in_channels: list[int], out_channels: int = 64) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels
        self.inner = nn.ModuleList(nn.Conv2d(number, out_channels, 1) for number in in_channels)
        levels = len(in_channels) + 1
        self.layers = nn.Sequential(*(BiFPNLayer(out_channels, levels) for _ in range(2)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        stages = self.body(images)
        maps = [conv(stage) for conv, stage in zip(self.inner, stages.values(), strict=True)]
        maps.append(F.max_pool2d(maps[-1], kernel_size=1, stride=2))
        return dict(zip([*stages, "pool"], self.layers(maps), strict=True))


def build(num_classes: int, **options: Any) -> MaskRCNN:
    body = small_maskrcnn(num_classes).backbone.body
    return small_maskrcnn(num_classes, backbone=BiFPNBackbone(body, [32, 64, 128, 128]), **options)
