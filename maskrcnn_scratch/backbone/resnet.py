"""ResNet (He et al. 2015, "Deep Residual Learning for Image Recognition").

By default the variant "v1.5": a bottleneck has its stride in the 3x3 convolution, not in the 1x1
convolution before it as in the paper (``Conventions.stride_in_1x1``).

    stage    stride   output of ResNet-50
    conv1         2   [N,   64, H/2,  W/2]
    maxpool       4   [N,   64, H/4,  W/4]
    layer1        4   [N,  256, H/4,  W/4]    C2
    layer2        8   [N,  512, H/8,  W/8]    C3
    layer3       16   [N, 1024, H/16, W/16]   C4
    layer4       32   [N, 2048, H/32, W/32]   C5
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (Figure 5, left; ResNet-18 and -34).

    Args:
        in_channels: channels of the input.
        width: channels of the convolutions.
        stride: of the first convolution.
        norm_layer: called with the number of channels.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, width, stride, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (Figure 5, right; ResNet-50 and deeper).

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3 convolution of a ResNet; the output has four times as many.
        stride: of the block.
        norm_layer: called with the number of channels.
    """

    expansion: ClassVar[int] = 4
    stride_in_1x1: ClassVar[bool] = False
    groups: ClassVar[int] = 1  # of the 3x3 convolution
    width_per_group: ClassVar[int] = 64  # of it in the first stage

    def __init__(self, in_channels: int, width: int, stride: int, norm_layer: NormLayer) -> None:
        super().__init__()
        out_channels = width * self.expansion
        width = width * self.width_per_group // 64 * self.groups
        strides = (stride, 1) if self.stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=strides[0], bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride=strides[1], padding=1, groups=self.groups, bias=False
        )
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class StrideIn1x1Bottleneck(Bottleneck):
    """The bottleneck of the paper: the stride is in the first 1x1 convolution."""

    stride_in_1x1 = True


class ResNeXt32x4dBottleneck(Bottleneck):
    """Xie et al. 2017, "Aggregated Residual Transformations": the 3x3 convolution has groups."""

    groups = 32
    width_per_group = 4


class ResNeXt32x8dBottleneck(Bottleneck):
    groups = 32
    width_per_group = 8


class ResNeXt64x4dBottleneck(Bottleneck):
    groups = 64
    width_per_group = 4


class WideBottleneck(Bottleneck):
    """Zagoruyko and Komodakis 2016, "Wide Residual Networks": twice as many inner channels."""

    width_per_group = 128


def projection(
    in_channels: int, out_channels: int, stride: int, norm_layer: NormLayer
) -> nn.Sequential | None:
    """The shortcut's 1x1 convolution, or None for an identity shortcut (section 3.3, option B)."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, norm_layer(out_channels))


class ResNet(nn.Sequential):
    """The layers of a ResNet up to C5, by torchvision's names; no pooling and no classifier.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        layers: number of blocks in each of the four stages.
        widths: channels of the blocks' 3x3 convolutions in each stage.
        in_channels: channels of the image.
        stem_width: channels of the first convolution.
        norm_layer: called with the number of channels.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        in_channels: int = 3,
        stem_width: int = 64,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        named: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(in_channels, stem_width, 7, stride=2, padding=3, bias=False),
            bn1=norm_layer(stem_width),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        )
        channels = stem_width
        for stage, (blocks, width) in enumerate(zip(layers, widths, strict=True), start=1):
            stride = 1 if stage == 1 else 2
            named[f"layer{stage}"] = nn.Sequential(
                block(channels, width, stride, norm_layer),
                *(block(width * block.expansion, width, 1, norm_layer) for _ in range(1, blocks)),
            )
            channels = width * block.expansion
        super().__init__(named)
        # torchvision initialises its classifier before the convolutions below: with the same random
        # numbers drawn here, the same seed gives the same weights.
        nn.Linear(channels, 1000)
        self.out_channels = [width * block.expansion for width in widths]  # of C2 to C5
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


# Table 1: the block, and the number of blocks in each stage.
ARCHITECTURES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": (ResNeXt32x4dBottleneck, (3, 4, 6, 3)),
    "resnext101_32x8d": (ResNeXt32x8dBottleneck, (3, 4, 23, 3)),
    "resnext101_64x4d": (ResNeXt64x4dBottleneck, (3, 4, 23, 3)),
    "wide_resnet50_2": (WideBottleneck, (3, 4, 6, 3)),
    "wide_resnet101_2": (WideBottleneck, (3, 4, 23, 3)),
}


def resnet(
    name: str,
    *,
    in_channels: int = 3,
    norm_layer: NormLayer = nn.BatchNorm2d,
    stride_in_1x1: bool = False,
) -> ResNet:
    """A ResNet of the paper by its name, with random weights.

    Args:
        name: a key of ``ARCHITECTURES``, such as ``"resnet50"``.
        in_channels: channels of the image.
        norm_layer: called with the number of channels.
        stride_in_1x1: see ``Conventions``.

    Raises:
        ValueError: another name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no ResNet is called {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    block, layers = ARCHITECTURES[name]
    if stride_in_1x1 and block is Bottleneck:
        block = StrideIn1x1Bottleneck
    return ResNet(block, layers, in_channels=in_channels, norm_layer=norm_layer)
