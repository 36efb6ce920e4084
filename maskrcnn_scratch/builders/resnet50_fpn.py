"""The four models on a ResNet-50-FPN, with torchvision's names and arguments::

    maskrcnn_resnet50_fpn        the model of the paper
    maskrcnn_resnet50_fpn_v2     with batch normalisation and deeper heads (Li et al. 2021, "Bench-
                                 marking Detection Transfer Learning with Vision Transformers")
    fasterrcnn_resnet50_fpn      the same two without the mask branch
    fasterrcnn_resnet50_fpn_v2

``load_model`` builds the one that a weights file belongs to.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import partial
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
from maskrcnn_scratch.weights.remote import is_address, weights_file


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
        weights: weights of the whole model: the name of published ones, such as ``"DEFAULT"``, a
            file as a ``Path``, or an address as text (``weights.remote.weights_file``), in any
            layout of ``weights.layouts``. If the number of classes differs, the last layers of the
            predictors are initialised at random, and a warning lists them.
        progress: whether to show a progress bar while downloading.
        num_classes: background included; by default as in ``weights``, or 91.
        weights_backbone: weights of the ResNet, used if there are no ``weights``.
        trainable_backbone_layers: how many of the ResNet's five layers are trained, counted from
            the last; 3 by default. Without any weights all are trained, with BatchNorm2d instead of
            FrozenBatchNorm2d.
        **kwargs: ``in_channels`` of the images, by default as in ``weights``, or 3; weights for
            three channels are adapted (``weights.loading.inflate_stem``). ``conventions``, by
            default those of the library that ``weights`` come from. All others are arguments of
            ``MaskRCNN``.

    Raises:
        TypeError: an argument that the model does not have.
        ValueError: weights of an unknown name, or parts that do not fit together.
        WeightsError: weights that cannot be downloaded or read, or belong to another model.
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
    """``maskrcnn_resnet50_fpn`` with BatchNorm2d in backbone, FPN and heads, and deeper heads.

    The RPN head has two convolutions; the box head has four and one fully connected layer.
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
    """The model that a weights file belongs to, with its weights, in eval mode.

    Args:
        file: weights of one of the four models, in any layout of ``weights.layouts``. For a
            checkpoint of ``maskrcnn train`` see ``load_trained``.
        **kwargs: for the model's builder.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: it cannot be read, or does not belong to one of the four models.
    """
    path = Path(file)
    state_dict = read_state_dict(path)
    with naming(path):
        name = to_torchvision(state_dict)[1]
    if name == BACKBONE:
        raise WeightsError(f"{path}: weights of a ResNet-50 only, without a detector")
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
        hint = ": use weights= instead" if "pretrained" in min(unknown) else ""
        raise TypeError(f"{min(unknown)!r} is not an argument of {which.class_.__name__}{hint}")
    if is_address(weights):
        weights = weights_file(str(weights))
    whole = weights if isinstance(weights, Path) else which.published.verify(weights)
    source: WeightsEnum | Path | None = whole
    if source is None and is_address(weights_backbone):
        source = weights_file(str(weights_backbone))
    elif source is None and isinstance(weights_backbone, Path):
        source = weights_backbone
    elif source is None:
        source = ResNet50_Weights.verify(weights_backbone)
    if source is None and trainable_backbone_layers is not None:
        warnings.warn(
            f"trainable_backbone_layers={trainable_backbone_layers} is ignored: without weights "
            "all layers are trained",
            stacklevel=3,
        )
    state_dict, conventions_of_source = _read(source, progress)
    if num_classes is None:
        num_classes = _rows(state_dict, whole) if whole and _CLASSES in state_dict else 91
    if in_channels is None:
        stem = state_dict.get(_STEM)
        in_channels = stem.shape[1] if stem is not None and stem.dim() == 4 and len(stem) else 3
    conventions = (conventions or conventions_of_source).with_channels(in_channels)

    body = resnet(
        "resnet50",
        in_channels=in_channels,
        norm_layer=partial(FrozenBatchNorm2d, eps=conventions.eps_for(source))
        if source and not which.v2
        else nn.BatchNorm2d,
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
        num_anchors = 3 if anchors is None else anchors.num_anchors_per_location()[0]
        parts = _v2_parts(backbone.out_channels, num_anchors, which.class_ is MaskRCNN)
        kwargs = {**parts, **kwargs}
    model = which.class_(backbone, num_classes, conventions=conventions, **kwargs)
    if whole is not None:
        load_pretrained(model, state_dict, source=str(whole))
    return model


def _read(
    source: WeightsEnum | Path | None, progress: bool
) -> tuple[dict[str, Tensor], Conventions]:
    """The tensors by torchvision's names, and the conventions of the library they come from."""
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
    if layout == "detectron2":
        return state_dict, Conventions.detectron2()
    return state_dict, Conventions.torchvision()


def _rows(state_dict: dict[str, Tensor], source: object) -> int:
    """The number of classes, on which the tensors of the box predictor must agree."""
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


def _v2_parts(channels: int, num_anchors: int, has_mask: bool) -> dict[str, nn.Module]:
    """The heads of the "v2" models, for ``num_anchors`` anchors per location."""
    widths = (256, 256, 256, 256)
    parts = {
        "rpn_head": RPNHead(channels, num_anchors, conv_depth=2),
        "box_head": FastRCNNConvFCHead((channels, 7, 7), widths, (1024,), nn.BatchNorm2d),
    }
    if has_mask:
        parts["mask_head"] = MaskRCNNHeads(channels, widths, 1, nn.BatchNorm2d)
    return parts
