"""The models that ``maskrcnn train`` builds, and loading its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import nn

from maskrcnn_scratch.backbone import (
    BackboneWithFPN,
    FrozenBatchNorm2d,
    resnet_fpn_backbone,
)
from maskrcnn_scratch.builders.resnet50_fpn import load_model
from maskrcnn_scratch.builders.small import small_fasterrcnn, small_maskrcnn
from maskrcnn_scratch.builders.transform_by_scale import TransformByScale
from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.conventions import (
    Conventions,
    frozen_batch_norm_eps_of,
    paste_masks_subpixel,
)
from maskrcnn_scratch.faster_rcnn import FasterRCNN
from maskrcnn_scratch.mask_rcnn import MaskRCNN
from maskrcnn_scratch.plain_values import check_positive, from_dict, shown
from maskrcnn_scratch.rpn import AnchorGenerator
from maskrcnn_scratch.user_code import UserCodeError
from maskrcnn_scratch.weights import (
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    ResNet50_Weights,
    WeightsEnum,
    WeightsError,
    read_state_dict,
)
from maskrcnn_scratch.weights.categories import COCO_CATEGORIES
from maskrcnn_scratch.weights.loading import (
    check_same_shapes,
    load_backbone,
    load_pretrained,
    warn_of_values,
)
from maskrcnn_scratch.weights.remote import weights_file
from maskrcnn_scratch.without_memory import without_memory

PYRAMID_LEVELS = 5  # P2 to P6
_CLASSES = "roi_heads.box_predictor.cls_score.bias"  # one per class


@dataclass(frozen=True)
class ModelConfig:
    """Which Mask R-CNN or Faster R-CNN to train."""

    architecture: Literal[
        "resnet50_fpn", "small", "fasterrcnn_resnet50_fpn", "fasterrcnn_small"
    ] = "resnet50_fpn"
    """The paper's Mask R-CNN, or one with 1.8 million parameters that trains on a CPU in minutes;
    or the same without the mask branch, for boxes only (Faster R-CNN)."""
    model: str | None = None
    """Your function build(config, num_classes) that returns the model, as FILE.py:NAME or
    package.module:NAME. config has these options, num_classes counts the background. The name is
    stored; no command runs the file unless it is given --model again."""
    weights: str = "imagenet"
    """Starting weights: coco (the whole model with a ResNet), imagenet (its ResNet), none, or a
    weights file, with any number of classes, or its address: https://HOST/FILE#sha256=DIGITS or
    hf://OWNER/NAME/FILE."""
    trainable_backbone_layers: int | None = None
    """How many of the five ResNet layers are trained, counted from the last; by default 3, or all
    without starting weights."""
    frozen_batch_norm_eps: float | None = None
    """Epsilon of the frozen batch normalisation; by default the one that the starting weights were
    trained with. Set 0 for a converted copy of the published COCO weights."""
    widths: tuple[int, int, int, int] = (32, 64, 128, 128)
    """Channels of each stage of the small model."""
    blocks: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Residual blocks in each stage of the small model."""
    min_size: tuple[int, ...] = (800,)
    """Pixels to which the shorter side is resized. Of several, training draws one per image, and
    inference uses the last."""
    max_size: int = 1333
    """Upper limit of the longer side, in pixels."""
    test_scale: float | None = None
    """Factor by which images are resized in inference, instead of to min_size: for training on
    crops."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Anchor sizes in pixels of the resized image, divided evenly among the five pyramid levels."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors."""
    pre_nms_top_n: int | None = None
    """Proposals per level before NMS; by default 2000 in training and 1000 in inference."""
    post_nms_top_n: int | None = None
    """Proposals per image after NMS; by default 2000 in training and 1000 in inference."""
    rpn_samples: int = 256
    """Anchors sampled per image for the losses."""
    box_samples: int = 512
    """Proposals sampled per image for the losses."""
    detections: int = 100
    """The most detections per image."""
    subpixel_masks: bool = False
    """Paste masks without rounding their boxes to pixels, and pool features with aligned RoIAlign,
    as detectron2 does and torchvision does not."""

    def __post_init__(self) -> None:
        split_over_levels(self.anchor_sizes)  # raises if it cannot
        check_positive(
            self, "min_size", "max_size", "test_scale", "aspect_ratios", "pre_nms_top_n",
            "post_nms_top_n", "rpn_samples", "box_samples", "detections",
        )  # fmt: skip
        if self.is_small and self.weights in ("coco", "imagenet"):
            raise ValueError(
                f"there are no {self.weights} weights for the small model: set weights to none or "
                "to a file"
            )

    @property
    def is_small(self) -> bool:
        """Whether it is the small model, which has no published weights."""
        return self.architecture.endswith("small")

    @property
    def has_masks(self) -> bool:
        """Whether the model has a mask branch."""
        return not self.architecture.startswith("fasterrcnn")


def split_over_levels(anchor_sizes: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Sizes per level for ``AnchorGenerator``: of ten sizes, the first two are for P2.

    Raises:
        ValueError: their number is not a multiple of five, or one is not positive.
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


# Makes a model of its options and the number of classes, background included: ``build_model``, or
# the function that ``--model`` names.
Builder: TypeAlias = Callable[[ModelConfig, int], FasterRCNN]


class TrainedModel(NamedTuple):
    """A model and the meaning of its labels."""

    model: FasterRCNN  # in eval mode, on the CPU
    class_names: dict[int, str]  # by label, from 1
    category_labels: dict[int, int]  # label by COCO category id


def load_trained(path: str | PathLike[str], build: Builder | None = None) -> TrainedModel:
    """The model of a checkpoint that ``maskrcnn train`` wrote, or of a weights file.

    A weights file must belong to a model of ``builders.resnet50_fpn``. If that has 91 classes,
    labels are COCO's category ids; otherwise the class names are the labels as text.

    Args:
        build: makes the model in place of ``build_model``. The file's weights must fit it; a
            weights file must have torchvision's names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, WeightsError: it cannot be read, or belongs to no such model, or was trained
            with ``--model`` and ``build`` is missing.
        UserCodeError: ``build`` is the function of a file (``builders.custom``) and raised.
    """
    try:
        checkpoint = load_checkpoint(Path(path))
    except ValueError:  # may be a weights file of another format
        checkpoint = {}
    if "category_labels" in checkpoint:
        try:
            return _load_run(checkpoint, path, build)
        except UserCodeError:
            raise
        except Exception as error:  # what a damaged configuration breaks first is open
            reason = shown(str(error) or type(error).__name__, 300)
            raise ValueError(f"{path}: no model can be made of it: {reason}") from error
    model = load_model(path) if build is None else _load_into(build, Path(path))
    outputs = len(model.state_dict()[_CLASSES])
    if outputs == len(COCO_CATEGORIES):
        names = {label: name for label, name in enumerate(COCO_CATEGORIES) if name != "N/A"}
        del names[0]
    else:
        names = {label: str(label) for label in range(1, outputs)}
    return TrainedModel(model, names, {label: label for label in names})


def model_reference(path: str | PathLike[str]) -> str | None:
    """What ``--model`` was for the run of a checkpoint; None for other runs and files."""
    try:
        model = load_checkpoint(Path(path))["config"]["model"]["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if model is None else shown(model, 200)


def _load_into(build: Builder, path: Path) -> FasterRCNN:
    """The model of ``build`` with the weights of a file."""
    state_dict = read_state_dict(path)
    if _CLASSES not in state_dict:
        raise WeightsError(f"{path}: no {_CLASSES}, which tells the number of classes")
    model = build(with_resolved_eps(ModelConfig(weights=str(path))), len(state_dict[_CLASSES]))
    load_pretrained(model, state_dict, source=str(path))
    return model.eval()


def _load_run(
    checkpoint: dict[str, Any], path: str | PathLike[str], build: Builder | None
) -> TrainedModel:
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
    if config.is_small and max(config.blocks) > len(weights):
        raise ValueError(f"blocks are {config.blocks}, with {len(weights)} tensors")
    num_classes = max(names, default=0) + 1
    if build is None:
        if config.model is not None:
            raise ValueError(
                f"it was trained with --model {shown(config.model, 200)}: give --model again, "
                "which runs that code"
            )
        with without_memory():
            expected = build_model(config, num_classes).state_dict()
        check_same_shapes(expected, weights)
        model = build_model(config, num_classes)
    else:
        model = build(config, num_classes)
        check_same_shapes(model.state_dict(), weights)
    warn_of_values(weights, path)
    model.load_state_dict(weights)
    return TrainedModel(model.eval(), names, labels)


def build_model(config: ModelConfig, num_classes: int) -> FasterRCNN:
    """The model with random weights; ``num_classes`` includes the background."""
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
    model: FasterRCNN
    if config.is_small:
        small = small_maskrcnn if config.has_masks else small_fasterrcnn
        model = small(num_classes, config.widths, config.blocks, **options)
    else:
        kind = MaskRCNN if config.has_masks else FasterRCNN
        model = kind(resnet50_fpn(config), num_classes, **options)
    if config.test_scale is not None:
        model.transform = TransformByScale(model.transform, config.test_scale)
    return model


def resnet50_fpn(config: ModelConfig) -> BackboneWithFPN:
    """A ResNet-50-FPN with BatchNorm2d, or FrozenBatchNorm2d if there are starting weights."""
    from_scratch = config.weights == "none"
    trained_layers = config.trainable_backbone_layers
    if trained_layers is None:
        trained_layers = 5 if from_scratch else 3
    return resnet_fpn_backbone(
        backbone_name="resnet50",
        norm_layer=nn.BatchNorm2d
        if from_scratch
        else partial(FrozenBatchNorm2d, eps=frozen_batch_norm_eps(config)),
        trainable_layers=trained_layers,
    )


def frozen_batch_norm_eps(config: ModelConfig) -> float:
    """``config.frozen_batch_norm_eps``, or the one that the starting weights were trained with."""
    if config.frozen_batch_norm_eps is not None:
        return config.frozen_batch_norm_eps  # nothing is downloaded for a trained model
    weights = starting_weights(config)
    if isinstance(weights, Path) and not weights.is_file():
        weights = None  # load_starting_weights raises the error; a trained model needs no file
    return frozen_batch_norm_eps_of(weights)


def with_resolved_eps(config: ModelConfig) -> ModelConfig:
    """``config`` with its epsilon as a number.

    A training run stores it: when its checkpoint is loaded, the weights file may be gone.
    """
    return replace(config, frozen_batch_norm_eps=frozen_batch_norm_eps(config))


def starting_weights(config: ModelConfig) -> WeightsEnum | Path | None:
    """What ``config.weights`` names; an address is downloaded once."""
    coco = MaskRCNN_ResNet50_FPN_Weights if config.has_masks else FasterRCNN_ResNet50_FPN_Weights
    named: dict[str, WeightsEnum | None] = {
        "coco": coco.DEFAULT,
        "imagenet": ResNet50_Weights.IMAGENET1K_V1,
        "none": None,
    }
    return named[config.weights] if config.weights in named else weights_file(config.weights)


def load_starting_weights(model: FasterRCNN, config: ModelConfig) -> None:
    """Loads the weights that ``config.weights`` names into a model from ``build_model``.

    Raises:
        FileNotFoundError, WeightsError: there is no such file, or it belongs to another model.
    """
    weights = starting_weights(config)
    if isinstance(weights, ResNet50_Weights) and "backbone.body.conv1.weight" not in (
        model.state_dict()
    ):
        raise WeightsError(
            "--weights imagenet is for a ResNet-50 at backbone.body, which the model does not have:"
            " use --weights none"
        )
    if isinstance(weights, Path):
        load_pretrained(model, read_state_dict(weights), source=str(weights))
    elif isinstance(weights, ResNet50_Weights):
        load_backbone(model.get_submodule("backbone.body"), weights.get_state_dict())
    elif weights is not None:
        load_pretrained(model, weights.get_state_dict(), source=str(weights))
