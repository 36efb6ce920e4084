"""MobileNetV3-Large (Howard et al. 2019, Table 1), with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch.backbone.fpn import LastLevelMaxPool
from maskrcnn_scratch.backbone.frozen_batch_norm import FrozenBatchNorm2d
from maskrcnn_scratch.backbone.resnet_fpn import BackboneWithFPN
from maskrcnn_scratch.weights import WeightsError, read_state_dict

NormLayer = Callable[[int], nn.Module]

ARCHITECTURE = "mobilenet_v3_large"
PREFIX = "features."  # of the backbone in the weights of the classifier
OUT_CHANNELS = 256


class _Row(NamedTuple):
    """One row of Table 1."""

    kernel: int
    expanded: int  # channels inside the block
    out: int
    squeeze: bool
    activation: type[nn.Module]
    stride: int


_ROWS = [
    _Row(3, 16, 16, False, nn.ReLU, 1),
    _Row(3, 64, 24, False, nn.ReLU, 2),
    _Row(3, 72, 24, False, nn.ReLU, 1),
    _Row(5, 72, 40, True, nn.ReLU, 2),
    _Row(5, 120, 40, True, nn.ReLU, 1),
    _Row(5, 120, 40, True, nn.ReLU, 1),
    _Row(3, 240, 80, False, nn.Hardswish, 2),
    _Row(3, 200, 80, False, nn.Hardswish, 1),
    _Row(3, 184, 80, False, nn.Hardswish, 1),
    _Row(3, 184, 80, False, nn.Hardswish, 1),
    _Row(3, 480, 112, True, nn.Hardswish, 1),
    _Row(3, 672, 112, True, nn.Hardswish, 1),
    _Row(5, 672, 160, True, nn.Hardswish, 2),
    _Row(5, 960, 160, True, nn.Hardswish, 1),
    _Row(5, 960, 160, True, nn.Hardswish, 1),
]
FIRST, LAST = 16, 960  # channels of the first and the last convolution
CLASSIFIER = (1280, 1000)  # widths of the classifier's layers, which is not kept


class ConvNormActivation(nn.Sequential):
    """Convolution without bias, normalisation and, if given, an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        norm_layer: NormLayer,
        activation: type[nn.Module] | None,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            norm_layer(outputs),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor in 0-1 that all pixels decide (Hu et al. 2018, Fig. 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        # A multiple of 8 near a quarter of the channels, not below 90% of it.
        squeezed = max(8, (quarter + 4) // 8 * 8)
        if squeezed < 0.9 * quarter:
            squeezed += 8
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = F.adaptive_avg_pool2d(x, 1)  # [N, F, 1, 1]
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(mean))))


class InvertedResidual(nn.Module):
    """Expands channels, convolves each alone, and projects them back (section 5.1).

    Attributes:
        out_channels: of the result.
    """

    def __init__(self, inputs: int, row: _Row, norm_layer: NormLayer) -> None:
        super().__init__()
        self.out_channels = row.out
        self.has_shortcut = row.stride == 1 and inputs == row.out
        layers: list[nn.Module] = []
        if row.expanded != inputs:
            layers.append(ConvNormActivation(inputs, row.expanded, 1, norm_layer, row.activation))
        layers.append(
            ConvNormActivation(
                row.expanded, row.expanded, row.kernel, norm_layer, row.activation, row.stride,
                groups=row.expanded,
            )
        )  # fmt: skip
        if row.squeeze:
            layers.append(SqueezeExcitation(row.expanded))
        layers.append(ConvNormActivation(row.expanded, row.out, 1, norm_layer, None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out + x if self.has_shortcut else out


def mobilenet_v3_large(norm_layer: NormLayer) -> nn.Sequential:
    """The layers before the classifier, ``[N, 3, H, W]`` -> ``[N, 960, H/32, W/32]``.

    The same seed gives the same weights as torchvision's ``mobilenet_v3_large().features``.
    """
    layers: list[nn.Module] = [ConvNormActivation(3, FIRST, 3, norm_layer, nn.Hardswish, stride=2)]
    channels = FIRST
    for row in _ROWS:
        layers.append(InvertedResidual(channels, row, norm_layer))
        channels = row.out
    layers.append(ConvNormActivation(channels, LAST, 1, norm_layer, nn.Hardswish))
    features = nn.Sequential(*layers)
    classifier = [nn.Linear(LAST, CLASSIFIER[0]), nn.Linear(*CLASSIFIER)]
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for layer in classifier:  # torchvision draws them before what follows the backbone
        nn.init.normal_(layer.weight, 0, 0.01)
    return features


def mobilenet_backbone(
    *,
    backbone_name: str,
    weights: Path | str | None,
    fpn: bool,
    norm_layer: NormLayer = FrozenBatchNorm2d,
    trainable_layers: int = 2,
    returned_layers: Sequence[int] | None = None,
    extra_blocks: nn.Module | None = None,
) -> nn.Module:
    """MobileNetV3-Large with or without an FPN, as torchvision's function of the same name.

    Its six stages end where the stride grows: strides 2, 4, 8, 16, 32, and 32 with 960 channels.

    Args:
        backbone_name: ``"mobilenet_v3_large"``.
        weights: file with torchvision's ImageNet weights; random weights if None.
        fpn: whether the result has a feature pyramid: ``{"0": [N, 256, H/32, W/32], "1": ...,
            "pool": ...}``. Else one map ``[N, 256, H/32, W/32]``.
        norm_layer: normalisation, called with the number of channels.
        trainable_layers: how many of the six stages are trained, counted from the last.
        returned_layers: input stages of the FPN, each in 0-5; by default the last two.
        extra_blocks: adds coarser levels; ``LastLevelMaxPool`` by default.

    Raises:
        ValueError: an unknown name, stage or number of layers.
        FileNotFoundError, WeightsError: weights that cannot be read, or of another network.
    """
    if backbone_name != ARCHITECTURE:
        raise ValueError(f"backbone_name is {backbone_name!r}, it must be {ARCHITECTURE!r}")
    features = mobilenet_v3_large(norm_layer)
    strided = [n for n, row in enumerate(_ROWS, start=1) if row.stride > 1]
    stages = [0, *strided, len(features) - 1]  # the last layer of each
    if weights is not None:
        _load(features, Path(weights))
    if not 0 <= trainable_layers <= len(stages):
        raise ValueError(f"trainable_layers must be in 0-{len(stages)}, got {trainable_layers}")
    trained_from = stages[-trainable_layers] if trainable_layers else len(features)
    features[:trained_from].requires_grad_(False)
    if not fpn:
        project = nn.Conv2d(LAST, OUT_CHANNELS, 1)
        backbone = nn.Sequential(features, project)
        backbone.out_channels = OUT_CHANNELS  # type: ignore[assignment]
        return backbone
    returned = list(returned_layers or (len(stages) - 2, len(stages) - 1))
    if not all(0 <= stage < len(stages) for stage in returned):
        raise ValueError(f"returned_layers must be in 0-{len(stages) - 1}, got {returned}")
    channels = [FIRST, *(_ROWS[n - 1].out for n in strided), LAST]
    return BackboneWithFPN(
        features,
        return_layers={str(stages[stage]): str(level) for level, stage in enumerate(returned)},
        in_channels_list=[channels[stage] for stage in returned],
        out_channels=OUT_CHANNELS,
        extra_blocks=LastLevelMaxPool() if extra_blocks is None else extra_blocks,
    )


def _load(features: nn.Sequential, path: Path) -> None:
    tensors = {
        key.removeprefix(PREFIX): tensor
        for key, tensor in read_state_dict(path).items()
        if key.startswith(PREFIX)
    }
    known = features.state_dict()
    # FrozenBatchNorm2d has no counter of batches.
    tensors = {k: t for k, t in tensors.items() if k in known or "num_batches_tracked" not in k}
    try:
        features.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: not the weights of {ARCHITECTURE}: {reason}") from None
