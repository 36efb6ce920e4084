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
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from maskrcnn_scratch.backbone import FrozenBatchNorm2d, resnet
from maskrcnn_scratch.backbone.resnet_fpn import resnet_with_fpn
from maskrcnn_scratch.conventions import Conventions
from maskrcnn_scratch.mask_rcnn import FasterRCNN, MaskRCNN
from maskrcnn_scratch.roi_heads import FastRCNNConvFCHead, MaskRCNNHeads
from maskrcnn_scratch.rpn import RPNHead
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

_M = TypeVar("_M", bound=FasterRCNN)

# The first published weights were trained when FrozenBatchNorm2d had no epsilon.
_TRAINED_WITHOUT_EPS = (
    MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
)


def maskrcnn_resnet50_fpn(
    *,
    weights: MaskRCNN_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN with a ResNet-50-FPN, as torchvision's function of the same name.

    Args:
        weights: of the whole model: published ones, such as ``"DEFAULT"``, or a file as a ``Path``,
            in any layout of ``weights.layouts``. For another number of classes the last layers of
            the predictors start afresh, and a warning lists them.
        progress: shows a bar while downloading.
        num_classes: with the background; by default 91, or what ``weights`` were trained for.
        weights_backbone: of the ResNet alone, where there are no ``weights``.
        trainable_backbone_layers: how many of the ResNet's five layers are trained, from the last:
            3 by default. Without any weights all are, and their batch normalisation is an ordinary
            one instead of a frozen one.
        **kwargs: ``in_channels`` of the images (3), to which weights for three are fitted
            (``weights.loading.inflate_stem``; mean and deviation become grey ones unless given);
            the rest to ``MaskRCNN``.

    Raises:
        WeightsError: weights that cannot be had or are not of this model.
    """
    return _build(
        MaskRCNN,
        MaskRCNN_ResNet50_FPN_Weights,
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
    weights_backbone: ResNet50_Weights | str | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> MaskRCNN:
    """``maskrcnn_resnet50_fpn`` with ordinary batch normalisation everywhere and deeper heads.

    The RPN head has two convolutions, the box head four and one fully connected layer.
    """
    return _build(
        MaskRCNN,
        MaskRCNN_ResNet50_FPN_V2_Weights,
        weights,
        progress,
        num_classes,
        weights_backbone,
        trainable_backbone_layers,
        v2=True,
        **kwargs,
    )


def fasterrcnn_resnet50_fpn(
    *,
    weights: FasterRCNN_ResNet50_FPN_Weights | str | Path | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """``maskrcnn_resnet50_fpn`` without the mask branch."""
    return _build(
        FasterRCNN,
        FasterRCNN_ResNet50_FPN_Weights,
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
    weights_backbone: ResNet50_Weights | str | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """``maskrcnn_resnet50_fpn_v2`` without the mask branch."""
    return _build(
        FasterRCNN,
        FasterRCNN_ResNet50_FPN_V2_Weights,
        weights,
        progress,
        num_classes,
        weights_backbone,
        trainable_backbone_layers,
        v2=True,
        **kwargs,
    )


def load_model(file: str | os.PathLike[str], **kwargs: Any) -> FasterRCNN:
    """The model that a weights file is of, with its weights, in eval mode.

    Args:
        file: in any layout of ``weights.layouts``, of one of the four models.
        **kwargs: to the model's builder.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: it cannot be read, or is of no such model.
    """
    path = Path(file)
    state_dict = read_state_dict(path)
    with naming(path):
        state_dict, model = to_torchvision(state_dict)
    if model == BACKBONE:
        raise WeightsError(f"{path}: weights of a ResNet-50 alone, without a detector")
    num_classes = len(state_dict["roi_heads.box_predictor.cls_score.bias"])
    options = {"num_classes": num_classes, **kwargs}
    return globals()[model](weights=path, **options).eval()


def _build(
    model_type: type[_M],
    published: type[WeightsEnum],
    weights: WeightsEnum | str | Path | None,
    progress: bool,
    num_classes: int | None,
    weights_backbone: ResNet50_Weights | str | None,
    trainable_backbone_layers: int | None,
    *,
    v2: bool = False,
    in_channels: int = 3,
    conventions: Conventions | None = None,
    **kwargs: Any,
) -> _M:
    """One of the four models; the arguments are those of the public functions."""
    if not isinstance(weights, Path):
        weights = published.verify(weights)
    weights_backbone = None if weights else ResNet50_Weights.verify(weights_backbone)
    pretrained = weights is not None or weights_backbone is not None
    if not pretrained and trainable_backbone_layers is not None:
        warnings.warn(
            f"trainable_backbone_layers={trainable_backbone_layers} is ignored: without weights "
            "there is nothing worth freezing, all layers are trained",
            stacklevel=3,
        )
    state_dict: dict[str, Tensor] = {}
    if weights is not None:
        state_dict, origin = _read(weights, progress)
        conventions = conventions or origin
    conventions = (conventions or Conventions.torchvision()).with_channels(in_channels)

    body = resnet(
        "resnet50",
        in_channels=in_channels,
        norm_layer=FrozenBatchNorm2d if pretrained and not v2 else nn.BatchNorm2d,
        stride_in_1x1=conventions.stride_in_1x1,
    )
    if weights_backbone is not None:
        load_backbone(body, weights_backbone.get_state_dict(progress=progress, check_hash=True))
    trainable_layers = 3 if trainable_backbone_layers is None else trainable_backbone_layers
    backbone = resnet_with_fpn(
        body,
        trainable_layers=trainable_layers if pretrained else 5,
        norm_layer=nn.BatchNorm2d if v2 else None,
    )
    if v2:
        anchors = kwargs.get("rpn_anchor_generator")
        anchors_per_cell = anchors.num_anchors_per_location()[0] if anchors else 3
        parts = _v2_parts(backbone.out_channels, anchors_per_cell, model_type is MaskRCNN)
        kwargs = {**parts, **kwargs}
    model = model_type(
        backbone, 91 if num_classes is None else num_classes, conventions=conventions, **kwargs
    )
    if weights is not None:
        load_pretrained(model, state_dict, source=str(weights))
        if _without_eps(weights):
            for module in model.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    module.eps = 0.0
    return model


def _read(weights: WeightsEnum | Path, progress: bool) -> tuple[dict[str, Tensor], Conventions]:
    """The tensors under torchvision's names, and the conventions they were trained with."""
    if isinstance(weights, WeightsEnum):
        return weights.get_state_dict(progress=progress, check_hash=True), Conventions.torchvision()
    state_dict = read_state_dict(weights)
    layout = detect_layout(state_dict)
    if layout is not None:
        with naming(weights):
            state_dict = LAYOUTS[layout].to_torchvision(state_dict)
    origin = Conventions.detectron2() if layout == "detectron2" else Conventions.torchvision()
    return state_dict, origin


def _without_eps(weights: WeightsEnum | Path) -> bool:
    """Whether the weights are, by their name, those that were trained without an epsilon."""
    if isinstance(weights, WeightsEnum):
        return weights in _TRAINED_WITHOUT_EPS
    return any(member.url.endswith(f"/{weights.name}") for member in _TRAINED_WITHOUT_EPS)


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
