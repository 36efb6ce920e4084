"""Small models for small images, from the same parts as the large ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from maskrcnn_scratch.backbone import BackboneWithFPN, BasicBlock
from maskrcnn_scratch.conventions import Conventions
from maskrcnn_scratch.faster_rcnn import FasterRCNN
from maskrcnn_scratch.mask_rcnn import MaskRCNN
from maskrcnn_scratch.roi_heads import (
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    MultiScaleRoIAlign,
    TwoMLPHead,
)

CHANNELS = 64  # of the feature maps


def small_maskrcnn(
    num_classes: int,
    widths: Sequence[int] = (32, 64, 128, 128),
    blocks: Sequence[int] = (1, 1, 1, 1),
    conventions: Conventions = Conventions.torchvision(),  # noqa: B008, it is immutable
    norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    **kwargs: Any,
) -> MaskRCNN:
    """A small Mask R-CNN.

    Args:
        num_classes: background included.
        widths: channels of the four stages, at strides 4 to 32.
        blocks: residual blocks in each stage.
        conventions: see ``Conventions``.
        norm_layer: normalisation in the four stages, called with the number of channels.
        **kwargs: for ``MaskRCNN``; a part that is given replaces the small one.
    """
    parts = {
        "backbone": _backbone(widths, blocks, norm_layer),
        **_box_branch(num_classes, conventions),
        "mask_roi_pool": _pool(conventions, output_size=14, channels_last=True),
        "mask_head": MaskRCNNHeads(CHANNELS, (64, 64), dilation=1),
        "mask_predictor": MaskRCNNPredictor(64, 64, num_classes),
    }
    return MaskRCNN(conventions=conventions, **{**parts, **kwargs})


def small_fasterrcnn(
    num_classes: int,
    widths: Sequence[int] = (32, 64, 128, 128),
    blocks: Sequence[int] = (1, 1, 1, 1),
    conventions: Conventions = Conventions.torchvision(),  # noqa: B008, it is immutable
    norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    **kwargs: Any,
) -> FasterRCNN:
    """``small_maskrcnn`` without the mask branch, with the same arguments."""
    parts = {
        "backbone": _backbone(widths, blocks, norm_layer),
        **_box_branch(num_classes, conventions),
    }
    return FasterRCNN(conventions=conventions, **{**parts, **kwargs})


def _backbone(
    widths: Sequence[int], blocks: Sequence[int], norm_layer: Callable[[int], nn.Module]
) -> BackboneWithFPN:
    body: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
        bn1=norm_layer(widths[0]),
        relu=nn.ReLU(inplace=True),
    )
    inputs = [widths[0], *widths[:-1]]
    for stage, (before, width, count) in enumerate(zip(inputs, widths, blocks, strict=True)):
        body[f"layer{stage + 1}"] = nn.Sequential(
            BasicBlock(before, width, 2, norm_layer),
            *(BasicBlock(width, width, 1, norm_layer) for _ in range(1, count)),
        )
    return BackboneWithFPN(
        nn.Sequential(body),
        {f"layer{stage + 1}": str(stage) for stage in range(4)},
        widths,
        CHANNELS,
    )


def _box_branch(num_classes: int, conventions: Conventions) -> dict[str, Any]:
    return {
        "box_roi_pool": _pool(conventions, output_size=7),
        "box_head": TwoMLPHead(CHANNELS * 7**2, 256),
        "box_predictor": FastRCNNPredictor(256, num_classes),
    }


def _pool(conventions: Conventions, **options: Any) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(
        ("0", "1", "2", "3"),
        sampling_ratio=2,
        canonical_scale=64,
        canonical_level=3,
        aligned=conventions.roi_aligned,
        **options,
    )
