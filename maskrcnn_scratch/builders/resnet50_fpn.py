"""The four models on a ResNet-50-FPN, with torchvision's names and arguments.

    maskrcnn_resnet50_fpn        the model of the paper
    maskrcnn_resnet50_fpn_v2     with batch normalisation and deeper heads (Li et al. 2021, "Bench-
                                 marking Detection Transfer Learning with Vision Transformers")
    fasterrcnn_resnet50_fpn      each without its mask branch
    fasterrcnn_resnet50_fpn_v2

``load_model`` builds whichever of them a weights file is for.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maskrcnn_scratch.backbone import FrozenBatchNorm2d, resnet
from maskrcnn_scratch.backbone.resnet_fpn import resnet_with_fpn
from maskrcnn_scratch.conventions import Conventions
from maskrcnn_scratch.faster_rcnn import FasterRCNN
from maskrcnn_scratch.mask_rcnn import MaskRCNN
from maskrcnn_scratch.plain_values import shown
from maskrcnn_scratch.roi_heads import FastRCNNConvFCHead, MaskRCNNHeads
from maskrcnn_scratch.rpn import RPNHead
from maskrcnn_scratch.transform import GeneralizedRCNNTransform
from maskrcnn_scratch.weights import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    ResNet50_Weights,
    WeightsEnum,
    WeightsError,
    read_state_dict,
)
from maskrcnn_scratch.weights.errors import naming
from maskrcnn_scratch.weights.identify import BACKBONE, to_torchvision
from maskrcnn_scratch.weights.layouts import LAYOUTS, detect_layout
from maskrcnn_scratch.weights.loading import load_backbone, load_pretrained


@dataclass(frozen=True)
class _Model:
    class_: type[FasterRCNN]
    published: type[WeightsEnum]
    v2: bool = False


MODELS = {
    "maskrcnn_resnet50_fpn": _Model(MaskRCNN, MaskRCNN_ResNet50_FPN_Weights),
    "maskrcnn_resnet50_fpn_v2": _Model(MaskRCNN, MaskRCNN_ResNet50_FPN_V2_Weights, v2=True),
    "fasterrcnn_resnet50_fpn": _Model(FasterRCNN, FasterRCNN_ResNet50_FPN_Weights),
    "fasterrcnn_resnet50_fpn_v2": _Model(FasterRCNN, FasterRCNN_ResNet50_FPN_V2_Weights, v2=True),
}

# Trained when FrozenBatchNorm2d had no epsilon.
_WITHOUT_EPS = (MaskRCNN_ResNet50_FPN_Weights.COCO_V1, FasterRCNN_ResNet50_FPN_Weights.COCO_V1)

_ARGUMENTS = {
    name for part in (FasterRCNN, GeneralizedRCNNTransform) for name in signature(part).parameters
}
_CLASSES = "roi_heads.box_predictor.cls_score.bias"
_STEM = "backbone.body.conv1.weight"


def maskrcnn_resnet50_fpn(
    *,
    weights: MaskRCNN_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN with a ResNet-50-FPN, as torchvision's function of the same name.

    Args:
        weights: of the whole model: published ones, such as ``"DEFAULT"``, or a file as a ``Path``,
            in any layout of ``weights.layouts``. For another number of classes the last layers of
            the predictors start afresh, and a warning lists them.
        progress: shows a bar while downloading.
        num_classes: with the background; by default what ``weights`` were trained for, or 91.
        weights_backbone: likewise of the ResNet alone, where there are no ``weights``.
        trainable_backbone_layers: how many of the ResNet's five layers are trained, from the last:
            3 by default. Without any weights all are, and their batch normalisation is an ordinary
            one instead of a frozen one.
        **kwargs: ``in_channels`` of the images, by default what ``weights`` have or 3; weights for
            three are fitted (``weights.loading.inflate_stem``). ``conventions``, by default those
            of the library that ``weights`` come from. The rest to ``MaskRCNN``.

    Raises:
        WeightsError: weights that cannot be had or are not of this model.
    """
    return _build(
        MODELS["maskrcnn_resnet50_fpn"],
        weights,
        progress,
        num_classes,
        weights_backbone,
        trainable_backbone_layers,
        **kwargs,
    )


def maskrcnn_resnet50_fpn_v2(
    *,
    weights: MaskRCNN_ResNet50_FPN_V2_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> MaskRCNN:
    """``maskrcnn_resnet50_fpn`` with ordinary batch normalisation everywhere and deeper heads.

    The RPN head has two convolutions, the box head four and one fully connected layer.
    """
    return _build(
        MODELS["maskrcnn_resnet50_fpn_v2"],
        weights,
        progress,
        num_classes,
        weights_backbone,
        trainable_backbone_layers,
        **kwargs,
    )


def fasterrcnn_resnet50_fpn(
    *,
    weights: FasterRCNN_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """``maskrcnn_resnet50_fpn`` without the mask branch."""
    return _build(
        MODELS["fasterrcnn_resnet50_fpn"],
        weights,
        progress,
        num_classes,
        weights_backbone,
        trainable_backbone_layers,
        **kwargs,
    )


def fasterrcnn_resnet50_fpn_v2(
    *,
    weights: FasterRCNN_ResNet50_FPN_V2_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """``maskrcnn_resnet50_fpn_v2`` without the mask branch."""
    return _build(
        MODELS["fasterrcnn_resnet50_fpn_v2"],
        weights,
        progress,
        num_classes,
        weights_backbone,
        trainable_backbone_layers,
        **kwargs,
    )


def load_model(file: str | os.PathLike[str], **kwargs: Any) -> FasterRCNN:
    """The model that a weights file is of, with its weights, in eval mode.

    Args:
        file: in any layout of ``weights.layouts``, of one of the four models. (A checkpoint of
            ``maskrcnn train`` may be of others: see ``load_trained``.)
        **kwargs: to the model's builder.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: it cannot be read, or is of no such model.
    """
    path = Path(file)
    state_dict = read_state_dict(path)
    with naming(path):
        name = to_torchvision(state_dict)[1]
    if name == BACKBONE:
        raise WeightsError(f"{path}: weights of a ResNet-50 alone, without a detector")
    try:
        return _build(MODELS[name], path, **kwargs).eval()
    except (IndexError, RuntimeError, ValueError, MemoryError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: no model can be made of it: {shown(error, 300)}") from error


def _build(
    which: _Model,
    weights: WeightsEnum | str | Path | None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    *,
    in_channels: int | None = None,
    conventions: Conventions | None = None,
    **kwargs: Any,
) -> Any:
    """One of the four models; the arguments are those of the public functions."""
    if unknown := kwargs.keys() - _ARGUMENTS:  # before anything is downloaded
        hint = ": weights are named by weights=" if "pretrained" in min(unknown) else ""
        raise TypeError(f"{min(unknown)!r} is no argument of {which.class_.__name__}{hint}")
    whole = weights if isinstance(weights, Path) else which.published.verify(weights)
    source: WeightsEnum | Path | None = whole
    if source is None and isinstance(weights_backbone, Path):
        source = weights_backbone
    elif source is None:
        source = ResNet50_Weights.verify(weights_backbone)
    if source is None and trainable_backbone_layers is not None:
        warnings.warn(
            f"trainable_backbone_layers={trainable_backbone_layers} is ignored: without weights "
            "there is nothing worth freezing, all layers are trained",
            stacklevel=3,
        )
    state_dict, origin = _read(source, progress)
    if num_classes is None:
        num_classes = _rows(state_dict, whole) if whole and _CLASSES in state_dict else 91
    if in_channels is None:
        stem = state_dict.get(_STEM)
        in_channels = stem.shape[1] if stem is not None and stem.dim() == 4 and len(stem) else 3
    conventions = (conventions or origin).with_channels(in_channels)

    body = resnet(
        "resnet50",
        in_channels=in_channels,
        norm_layer=FrozenBatchNorm2d if source and not which.v2 else nn.BatchNorm2d,
        stride_in_1x1=conventions.stride_in_1x1,
    )
    if whole is None and source is not None:
        with naming(source):
            load_backbone(body, LAYOUTS[BACKBONE].from_torchvision(state_dict))
    trainable_layers = 3 if trainable_backbone_layers is None else trainable_backbone_layers
    backbone = resnet_with_fpn(
        body,
        trainable_layers=trainable_layers if source else 5,
        norm_layer=nn.BatchNorm2d if which.v2 else None,
    )
    if which.v2:
        anchors = kwargs.get("rpn_anchor_generator")
        anchors_per_cell = 3 if anchors is None else anchors.num_anchors_per_location()[0]
        parts = _v2_parts(backbone.out_channels, anchors_per_cell, which.class_ is MaskRCNN)
        kwargs = {**parts, **kwargs}
    model = which.class_(backbone, num_classes, conventions=conventions, **kwargs)
    if whole is not None:
        load_pretrained(model, state_dict, source=str(whole))
        if _without_eps(whole):
            for module in model.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    module.eps = 0.0
    return model


def _read(
    source: WeightsEnum | Path | None, progress: bool
) -> tuple[dict[str, Tensor], Conventions]:
    """The tensors under torchvision's names, and the conventions they were trained with."""
    if source is None:
        return {}, Conventions.torchvision()
    if isinstance(source, Path):
        state_dict = read_state_dict(source)
    else:
        state_dict = source.get_state_dict(progress=progress, check_hash=True)
    layout = detect_layout(state_dict)
    if layout is not None:
        with naming(source):
            state_dict = LAYOUTS[layout].to_torchvision(state_dict)
    origin = Conventions.detectron2() if layout == "detectron2" else Conventions.torchvision()
    return state_dict, origin


def _rows(state_dict: dict[str, Tensor], source: object) -> int:
    """Classes of the box predictor's tensors, which must agree: layers are made of that size."""
    rows = {
        name: tuple(state_dict[key].shape[:1])
        for name in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias")
        if (key := f"roi_heads.box_predictor.{name}") in state_dict
    }
    (classes,) = rows["cls_score.bias"] or (0,)
    for name, found in rows.items():
        if found != ((4 if "bbox" in name else 1) * classes,) or not classes:
            raise WeightsError(f"{source}: {name} of the box predictor has rows {list(found)}")
    return classes


def _without_eps(weights: WeightsEnum | Path) -> bool:
    """Whether the weights are, a file by its name, those that were trained without an epsilon."""
    if isinstance(weights, Path):
        return any(member.url.endswith(f"/{weights.name}") for member in _WITHOUT_EPS)
    return weights in _WITHOUT_EPS


def _v2_parts(channels: int, anchors_per_cell: int, has_mask: bool) -> dict[str, nn.Module]:
    """What the second recipe puts in place of the default heads."""
    widths = (256, 256, 256, 256)
    parts = {
        "rpn_head": RPNHead(channels, anchors_per_cell, conv_depth=2),
        "box_head": FastRCNNConvFCHead((channels, 7, 7), widths, (1024,), nn.BatchNorm2d),
    }
    if has_mask:
        parts["mask_head"] = MaskRCNNHeads(channels, widths, 1, nn.BatchNorm2d)
    return parts
