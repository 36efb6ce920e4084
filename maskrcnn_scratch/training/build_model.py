"""The models that ``maskrcnn train`` can build, and how a checkpoint becomes one again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from maskrcnn_scratch.backbone import (
    BackboneWithFPN,
    BasicBlock,
    FrozenBatchNorm2d,
    resnet_fpn_backbone,
)
from maskrcnn_scratch.mask_rcnn import MaskRCNN
from maskrcnn_scratch.roi_heads import (
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    MultiScaleRoIAlign,
    TwoMLPHead,
)
from maskrcnn_scratch.rpn import AnchorGenerator
from maskrcnn_scratch.weights import (
    MaskRCNN_ResNet50_FPN_Weights,
    ResNet50_Weights,
    read_state_dict,
)
from maskrcnn_scratch.weights.loading import load_pretrained

PYRAMID_LEVELS = 5  # P2 to P6


@dataclass(frozen=True)
class ModelConfig:
    """Which Mask R-CNN to train."""

    architecture: Literal["resnet50_fpn", "small"] = "resnet50_fpn"
    """The paper's model, or one of 1.8 million parameters that learns on a CPU in minutes."""
    weights: str = "imagenet"
    """What training starts from: coco (the whole large model), imagenet (its ResNet), none, or a
    weights file, of any classes."""
    trainable_backbone_layers: int | None = None
    """How many of the five ResNet layers are trained, from the last; by default 3, and from
    scratch all."""
    widths: tuple[int, int, int, int] = (32, 64, 128, 128)
    """Channels of the small model's stages."""
    blocks: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Residual blocks in the small model's stages."""
    min_size: tuple[int, ...] = (800,)
    """Pixels that the shorter side is resized to; of several one is drawn for each image, and the
    last serves for inference."""
    max_size: int = 1333
    """Pixels that the longer side may have."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Anchor sizes in pixels of the resized image, split evenly over the five pyramid levels."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors."""
    pre_nms_top_n: int | None = None
    """Proposals of a level before NMS; by default 2000 in training and 1000 after."""
    post_nms_top_n: int | None = None
    """Proposals of an image after NMS; by default 2000 in training and 1000 after."""
    rpn_samples: int = 256
    """Anchors of an image that enter the losses."""
    box_samples: int = 512
    """Proposals of an image that enter the losses."""
    detections: int = 100
    """The most detections of an image."""

    def __post_init__(self) -> None:
        if not self.anchor_sizes or len(self.anchor_sizes) % PYRAMID_LEVELS:
            raise ValueError(
                f"anchor_sizes must be {PYRAMID_LEVELS} numbers, or a multiple of that, "
                f"got {len(self.anchor_sizes)}"
            )
        if self.architecture == "small" and self.weights in ("coco", "imagenet"):
            raise ValueError(
                f"there are no {self.weights} weights for the small model: set weights to none, "
                "or to a file"
            )


def build_model(config: ModelConfig, num_classes: int) -> MaskRCNN:
    """The model without its starting weights; ``num_classes`` includes the background."""
    per_level = len(config.anchor_sizes) // PYRAMID_LEVELS
    sizes = [
        config.anchor_sizes[level * per_level : (level + 1) * per_level]
        for level in range(PYRAMID_LEVELS)
    ]
    options: dict[str, Any] = {
        "min_size": config.min_size,
        "max_size": config.max_size,
        "rpn_anchor_generator": AnchorGenerator(sizes, config.aspect_ratios),
        "rpn_batch_size_per_image": config.rpn_samples,
        "box_batch_size_per_image": config.box_samples,
        "box_detections_per_img": config.detections,
    }
    for stage, top_n in (("pre", config.pre_nms_top_n), ("post", config.post_nms_top_n)):
        if top_n is not None:
            options |= {f"rpn_{stage}_nms_top_n_{phase}": top_n for phase in ("train", "test")}
    if config.architecture == "small":
        return small_maskrcnn(num_classes, config.widths, config.blocks, **options)
    return MaskRCNN(resnet50_fpn(config), num_classes, **options)


def load_starting_weights(model: nn.Module, config: ModelConfig) -> None:
    """Loads what ``config.weights`` names into a model that ``build_model`` made.

    Raises:
        FileNotFoundError, WeightsError: there is no such file, or it is of another model.
    """
    if config.weights == "coco":
        load_pretrained(model, MaskRCNN_ResNet50_FPN_Weights.DEFAULT.get_state_dict())
    elif config.weights == "imagenet":
        state_dict = ResNet50_Weights.IMAGENET1K_V1.get_state_dict()
        body = {key: value for key, value in state_dict.items() if not key.startswith("fc.")}
        model.get_submodule("backbone.body").load_state_dict(body)
    elif config.weights != "none":
        load_pretrained(model, read_state_dict(config.weights))


def resnet50_fpn(config: ModelConfig) -> BackboneWithFPN:
    """The large model's backbone: from scratch with batch norm that learns, else a frozen one."""
    if config.weights == "none":
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d
        trained = 5
    else:
        # The published COCO weights were trained without the epsilon.
        norm_layer = partial(FrozenBatchNorm2d, eps=0.0 if config.weights == "coco" else 1e-5)
        trained = 3
    if config.trainable_backbone_layers is not None:
        trained = config.trainable_backbone_layers
    return resnet_fpn_backbone(
        backbone_name="resnet50", norm_layer=norm_layer, trainable_layers=trained
    )


def small_maskrcnn(
    num_classes: int,
    widths: Sequence[int] = (32, 64, 128, 128),
    blocks: Sequence[int] = (1, 1, 1, 1),
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN for small images and little time, made of the same parts as the large one.

    Args:
        num_classes: background included.
        widths: channels of the four stages, at strides 4 to 32.
        blocks: residual blocks in each of them.
        **kwargs: to ``MaskRCNN``.
    """
    channels = 64
    body: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
        bn1=nn.BatchNorm2d(widths[0]),
        relu=nn.ReLU(inplace=True),
    )
    inputs = [widths[0], *widths[:-1]]
    for stage, (before, width, count) in enumerate(zip(inputs, widths, blocks, strict=True)):
        body[f"layer{stage + 1}"] = nn.Sequential(
            BasicBlock(before, width, 2, nn.BatchNorm2d),
            *(BasicBlock(width, width, 1, nn.BatchNorm2d) for _ in range(1, count)),
        )
    backbone = BackboneWithFPN(
        nn.Sequential(body),
        {f"layer{stage + 1}": str(stage) for stage in range(4)},
        widths,
        channels,
    )
    pool = partial(
        MultiScaleRoIAlign,
        ("0", "1", "2", "3"),
        sampling_ratio=2,
        canonical_scale=64,
        canonical_level=3,
    )
    return MaskRCNN(
        backbone,
        box_roi_pool=pool(output_size=7),
        box_head=TwoMLPHead(channels * 7**2, 256),
        box_predictor=FastRCNNPredictor(256, num_classes),
        mask_roi_pool=pool(output_size=14),
        mask_head=MaskRCNNHeads(channels, (64, 64), dilation=1),
        mask_predictor=MaskRCNNPredictor(64, 64, num_classes),
        **kwargs,
    )
