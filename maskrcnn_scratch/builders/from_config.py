"""The models that ``maskrcnn train`` can build, and how a checkpoint becomes one again."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from maskrcnn_scratch.backbone import (
    BackboneWithFPN,
    BasicBlock,
    FrozenBatchNorm2d,
    resnet_fpn_backbone,
)
from maskrcnn_scratch.builders.resnet50_fpn import load_model
from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.conventions import Conventions, paste_masks_subpixel
from maskrcnn_scratch.faster_rcnn import FasterRCNN
from maskrcnn_scratch.mask_rcnn import MaskRCNN
from maskrcnn_scratch.plain_values import check_positive, from_dict, shown
from maskrcnn_scratch.roi_heads import (
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    MultiScaleRoIAlign,
    TwoMLPHead,
)
from maskrcnn_scratch.rpn import AnchorGenerator
from maskrcnn_scratch.transform import GeneralizedRCNNTransform
from maskrcnn_scratch.weights import (
    MaskRCNN_ResNet50_FPN_Weights,
    ResNet50_Weights,
    read_state_dict,
)
from maskrcnn_scratch.weights.categories import COCO_CATEGORIES
from maskrcnn_scratch.weights.loading import load_backbone, load_pretrained, warn_of_values

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
    test_scale: float | None = None
    """Factor that images are resized by for inference, instead of to min_size: for training on
    crops that show only a part of them."""
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
    subpixel_masks: bool = False
    """Paste masks without rounding boxes to pixels and pool features without the half-pixel shift:
    better AP, but not torchvision's convention."""

    def __post_init__(self) -> None:
        split_over_levels(self.anchor_sizes)  # raises where it cannot
        check_positive(
            self, "min_size", "max_size", "test_scale", "aspect_ratios", "pre_nms_top_n",
            "post_nms_top_n", "rpn_samples", "box_samples", "detections",
        )  # fmt: skip
        if self.architecture == "small" and self.weights in ("coco", "imagenet"):
            raise ValueError(
                f"there are no {self.weights} weights for the small model: set weights to none, "
                "or to a file"
            )


def split_over_levels(anchor_sizes: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Sizes for ``AnchorGenerator``, evenly over five levels: of ten the first two for P2.

    Raises:
        ValueError: their number is no multiple of five, or one is not positive.
    """
    per_level, rest = divmod(len(anchor_sizes), PYRAMID_LEVELS)
    if rest or not per_level:
        raise ValueError(
            f"anchor_sizes must be {PYRAMID_LEVELS} numbers, or a multiple of that, "
            f"got {len(anchor_sizes)}"
        )
    if min(anchor_sizes) <= 0:
        raise ValueError(f"anchor_sizes must be positive, got {min(anchor_sizes)}")
    firsts = range(0, len(anchor_sizes), per_level)
    return tuple(tuple(anchor_sizes[first : first + per_level]) for first in firsts)


class TrainedModel(NamedTuple):
    """A model, and what its labels mean."""

    model: FasterRCNN  # in eval mode, on the CPU
    class_names: dict[int, str]  # by label, from 1
    category_labels: dict[int, int]  # label by COCO category id


def load_trained(path: str | PathLike[str]) -> TrainedModel:
    """The model of a checkpoint that ``maskrcnn train`` wrote, or of a weights file.

    A weights file is of one of the models in ``builders``; with 91 outputs its labels are COCO's
    category ids, otherwise the classes are called by their numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, WeightsError: it cannot be read, or is of no such model.
    """
    try:
        checkpoint = load_checkpoint(Path(path))
    except ValueError:  # other formats hold weights as well
        checkpoint = {}
    if "category_labels" in checkpoint:
        try:
            return _load_run(checkpoint, path)
        except Exception as error:  # what a damaged configuration breaks first is open
            reason = shown(str(error) or type(error).__name__, 300)
            raise ValueError(f"{path}: no model can be made of it: {reason}") from error
    model = load_model(path)
    outputs = len(model.state_dict()["roi_heads.box_predictor.cls_score.bias"])
    if outputs == len(COCO_CATEGORIES):
        names = {label: name for label, name in enumerate(COCO_CATEGORIES) if name != "N/A"}
        del names[0]
    else:
        names = {label: str(label) for label in range(1, outputs)}
    return TrainedModel(model, names, {label: label for label in names})


def _load_run(checkpoint: dict[str, Any], path: str | PathLike[str]) -> TrainedModel:
    """The model of a checkpoint; the weights are compared with it before it has memory."""
    for section in ("config", "class_names", "category_labels", "model"):
        if not isinstance(checkpoint.get(section), dict):
            raise ValueError(f"{section!r} is missing, or no dict")
    names, labels = checkpoint["class_names"], checkpoint["category_labels"]
    if not all(type(k) is int and k > 0 and type(v) is str for k, v in names.items()):
        raise ValueError("'class_names' are not names by label")
    if not all(type(k) is int and v in names for k, v in labels.items()):
        raise ValueError("'category_labels' are not labels by category")
    weights = checkpoint["model"]
    config = from_dict(ModelConfig, checkpoint["config"].get("model"))
    if config.architecture == "small" and sum(config.blocks) > len(weights):
        raise ValueError(f"blocks are {config.blocks}, with {len(weights)} tensors")
    num_classes = max(names, default=0) + 1
    with torch.device("meta"):  # no memory
        expected = build_model(config, num_classes).state_dict()
    for key in [*expected, *weights]:
        if key not in expected or key not in weights:
            raise ValueError(f"{key} is in {'weights' if key in weights else 'model'} only")
        here, there = expected[key], weights[key]
        if not isinstance(there, Tensor) or (here.shape, here.dtype) != (there.shape, there.dtype):
            raise ValueError(
                f"{key} should be {here.dtype} {list(here.shape)}, not "
                + (f"{there.dtype} {list(there.shape)}" if isinstance(there, Tensor) else "a value")
            )
    warn_of_values(weights, path)
    model = build_model(config, num_classes)
    model.load_state_dict(weights)
    return TrainedModel(model.eval(), names, labels)


def build_model(config: ModelConfig, num_classes: int) -> MaskRCNN:
    """The model without its starting weights; ``num_classes`` includes the background."""
    sizes = split_over_levels(config.anchor_sizes)
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
    if config.subpixel_masks:
        options["conventions"] = Conventions(roi_aligned=True, paste=paste_masks_subpixel)
    if config.architecture == "small":
        model = small_maskrcnn(num_classes, config.widths, config.blocks, **options)
    else:
        model = MaskRCNN(resnet50_fpn(config), num_classes, **options)
    if config.test_scale is not None:
        model.transform = TransformByScale(model.transform, config.test_scale)
    return model


class TransformByScale(GeneralizedRCNNTransform):
    """Resizes by a factor in inference; in training, and in all else, it is as ``transform``."""

    def __init__(self, transform: GeneralizedRCNNTransform, test_scale: float) -> None:
        super().__init__(
            transform.min_size,
            transform.max_size,
            transform.image_mean,
            transform.image_std,
            transform.size_divisible,
            transform.fixed_size,
            paste=transform.paste,
        )
        self.test_scale = test_scale

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self.training:
            return super().resized_size(height, width)
        # As in the base class sizes may be symbols.
        scale = torch.sym_min(self.test_scale, self.max_size / torch.sym_max(height, width))
        sides: list[Any] = [math.trunc(side * scale + 0.5) for side in (height, width)]
        return torch.sym_max(sides[0], 1), torch.sym_max(sides[1], 1)


def resnet50_fpn(config: ModelConfig) -> BackboneWithFPN:
    """The large model's backbone: from scratch with batch norm that learns, else a frozen one."""
    from_scratch = config.weights == "none"
    trained_layers = config.trainable_backbone_layers
    if trained_layers is None:
        trained_layers = 5 if from_scratch else 3
    return resnet_fpn_backbone(
        backbone_name="resnet50",
        # The published COCO weights were trained without the epsilon.
        norm_layer=nn.BatchNorm2d
        if from_scratch
        else partial(FrozenBatchNorm2d, eps=0.0 if config.weights == "coco" else 1e-5),
        trainable_layers=trained_layers,
    )


def load_starting_weights(model: MaskRCNN, config: ModelConfig) -> None:
    """Loads what ``config.weights`` names into a model that ``build_model`` made.

    Raises:
        FileNotFoundError, WeightsError: there is no such file, or it is of another model.
    """
    if config.weights == "coco":
        load_pretrained(model, MaskRCNN_ResNet50_FPN_Weights.DEFAULT.get_state_dict())
    elif config.weights == "imagenet":
        body = model.get_submodule("backbone.body")
        load_backbone(body, ResNet50_Weights.IMAGENET1K_V1.get_state_dict())
    elif config.weights != "none":
        load_pretrained(model, read_state_dict(config.weights), source=config.weights)


def small_maskrcnn(
    num_classes: int,
    widths: Sequence[int] = (32, 64, 128, 128),
    blocks: Sequence[int] = (1, 1, 1, 1),
    conventions: Conventions = Conventions.torchvision(),  # noqa: B008, it is immutable
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN for small images and little time, made of the same parts as the large one.

    Args:
        num_classes: background included.
        widths: channels of the four stages, at strides 4 to 32.
        blocks: residual blocks in each of them.
        conventions: where libraries differ.
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
        aligned=conventions.roi_aligned,
    )
    return MaskRCNN(
        backbone,
        box_roi_pool=pool(output_size=7),
        box_head=TwoMLPHead(channels * 7**2, 256),
        box_predictor=FastRCNNPredictor(256, num_classes),
        mask_roi_pool=pool(output_size=14, channels_last=True),
        mask_head=MaskRCNNHeads(channels, (64, 64), dilation=1),
        mask_predictor=MaskRCNNPredictor(64, 64, num_classes),
        conventions=conventions,
        **kwargs,
    )
