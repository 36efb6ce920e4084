"""A backbone and its feature pyramid as one module; a ResNet-FPN by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from maskrcnn_scratch.backbone.fpn import FeaturePyramidNetwork, LastLevelMaxPool
from maskrcnn_scratch.backbone.frozen_batch_norm import FrozenBatchNorm2d
from maskrcnn_scratch.backbone.intermediate_layer_getter import IntermediateLayerGetter
from maskrcnn_scratch.backbone.resnet import ResNet, resnet
from maskrcnn_scratch.weights import ResNet50_Weights
from maskrcnn_scratch.weights.loading import load_backbone


class BackboneWithFPN(nn.Module):
    """``[N, 3, H, W]`` -> the levels of the pyramid by name, ``{"0": [N, F, H/4, W/4], ...}``.

    Args:
        backbone: a module whose children are called in order.
        return_layers: name of the child to name of the level; see ``IntermediateLayerGetter``.
        in_channels_list: channels of the outputs of these children.
        out_channels: channels of every level, ``F``.
        extra_blocks: adds coarser levels; ``LastLevelMaxPool`` by default.
        norm_layer: normalisation in the FPN; None for convolutions with a bias.
    """

    def __init__(
        self,
        backbone: nn.Module,
        return_layers: Mapping[str, str],
        in_channels_list: Sequence[int],
        out_channels: int,
        extra_blocks: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(backbone, return_layers)
        self.fpn = FeaturePyramidNetwork(
            in_channels_list,
            out_channels,
            extra_blocks=LastLevelMaxPool() if extra_blocks is None else extra_blocks,
            norm_layer=norm_layer,
        )
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(self.body(x))


def resnet_fpn_backbone(
    backbone_name: str,
    weights: ResNet50_Weights | str | None = None,
    norm_layer: Callable[[int], nn.Module] = FrozenBatchNorm2d,
    trainable_layers: int = 3,
    returned_layers: Sequence[int] | None = None,
    extra_blocks: nn.Module | None = None,
    in_channels: int = 3,
) -> BackboneWithFPN:
    """A ResNet with an FPN of 256 channels, as torchvision's function of the same name.

    Args:
        backbone_name: ``"resnet50"`` or another of ``resnet.ARCHITECTURES``.
        weights: ImageNet weights to start from; random weights by default.
        norm_layer: normalisation in the ResNet, called with the number of channels.
        trainable_layers: how many of the five layers are trained, counted from the last; see
            ``freeze``.
        returned_layers: input stages of the FPN, each in 1-4; all by default.
        extra_blocks: see ``FeaturePyramidNetwork``.
        in_channels: channels of the images; weights are adapted to them
            (``weights.loading.inflate_stem``).

    Raises:
        ValueError: an unknown name, layer or number of layers.
        WeightsError: weights that cannot be downloaded or belong to another network.
    """
    body = resnet(backbone_name, in_channels=in_channels, norm_layer=norm_layer)
    weights = ResNet50_Weights.verify(weights)
    if weights is not None:
        load_backbone(body, weights.get_state_dict(progress=True, check_hash=True))
    return resnet_with_fpn(
        body,
        trainable_layers=trainable_layers,
        returned_layers=returned_layers,
        extra_blocks=extra_blocks,
    )


def resnet_with_fpn(
    body: ResNet,
    *,
    trainable_layers: int = 5,
    returned_layers: Sequence[int] | None = None,
    out_channels: int = 256,
    extra_blocks: nn.Module | None = None,
    norm_layer: Callable[[int], nn.Module] | None = None,
) -> BackboneWithFPN:
    """An FPN on a ResNet, of which all but the last ``trainable_layers`` layers are frozen."""
    stages = tuple(returned_layers or (1, 2, 3, 4))
    if not all(1 <= stage <= 4 for stage in stages):
        raise ValueError(f"returned_layers must be in 1-4, got {list(stages)}")
    freeze(body, trainable_layers)
    return BackboneWithFPN(
        body,
        return_layers={f"layer{stage}": str(level) for level, stage in enumerate(stages)},
        in_channels_list=[body.out_channels[stage - 1] for stage in stages],
        out_channels=out_channels,
        extra_blocks=extra_blocks,
        norm_layer=norm_layer,
    )


def freeze(body: ResNet, trainable_layers: int) -> None:
    """Freezes all but the last ``trainable_layers`` of conv1, layer1, layer2, layer3 and layer4.

    With 5, the affine parameters of bn1 are trained too, as in torchvision.

    Raises:
        ValueError: ``trainable_layers`` is not in 0-5.
    """
    if not 0 <= trainable_layers <= 5:
        raise ValueError(f"trainable_layers must be in 0-5, got {trainable_layers}")
    trained = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable_layers]
    if trainable_layers == 5:
        trained.append("bn1")
    for name, parameter in body.named_parameters():
        if name.split(".")[0] not in trained:
            parameter.requires_grad_(False)
