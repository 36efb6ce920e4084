"""Whether the parts of a model fit together, found out when it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskrcnn_scratch.structures import ImageList

if TYPE_CHECKING:
    from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
    from maskrcnn_scratch.roi_heads import RoIHeads

PROBE_SIDE = 64  # pixels: the least that gives every level of a ResNet-50-FPN a cell


@torch.no_grad()
def check_parts(model: GeneralizedRCNN) -> None:
    """Sends one small black image and one RoI through all parts and compares shapes.

    A backbone that can't take so small an image is checked when it is first used instead.

    Raises:
        ValueError: the backbone's levels, channels or names are not what the anchor generator,
            the RPN head or the poolers expect, or a head cannot take what comes before it.
    """
    parameter = next(model.parameters())
    image = parameter.new_zeros(1, len(model.transform.image_mean), PROBE_SIDE, PROBE_SIDE)
    modes = {module: module.training for module in model.modules()}
    model.eval()  # so that batch normalisation counts nothing
    try:
        features = _features_of_probe(model, image)
        if features is not None:
            check_features(model, features)
            sizes = torch.full((1, 2), PROBE_SIDE, device=image.device)
            model.rpn(ImageList(image, sizes), features)
            check_heads(model.roi_heads, features)
    finally:
        for module, training in modes.items():
            module.training = training


def _features_of_probe(model: GeneralizedRCNN, image: Tensor) -> dict[str, Tensor] | None:
    try:
        return model.extract_features(image)
    except Exception:
        return None


def check_features(model: GeneralizedRCNN, features: dict[str, Tensor]) -> None:
    """Raises a ValueError if ``features`` lack channels or names that the model relies on."""
    expected = model.backbone.out_channels
    for name, feature in features.items():
        if feature.dim() != 4 or feature.shape[1] != expected:
            raise ValueError(
                f"the backbone's feature map {name!r} has shape {list(feature.shape)}: expected "
                f"[N, {expected}, H, W], as backbone.out_channels is {expected}"
            )
    heads = model.roi_heads
    for part in ("box_roi_pool", "mask_roi_pool"):
        names = getattr(getattr(heads, part), "featmap_names", [])
        missing = [name for name in names if name not in features]
        if missing:
            raise ValueError(
                f"{part} pools from {list(names)}, the backbone gives {list(features)}: "
                f"{missing} are missing"
            )


def check_heads(heads: RoIHeads, features: dict[str, Tensor]) -> None:
    """Raises a ValueError that names the first part of a branch that can't take one RoI."""
    rois = next(iter(features.values())).new_tensor([[0, 0, 0, PROBE_SIDE / 2, PROBE_SIDE / 2]])
    logits, offsets = _through_branch(heads, "box", features, rois)
    num_classes = logits.shape[1]
    if num_classes < 2 or offsets.shape[1] != 4 * num_classes:
        raise ValueError(
            f"box_predictor gives {num_classes} logits and {offsets.shape[1]} offsets: it takes "
            "two classes at least, the background and one of objects, and four offsets for each"
        )
    if heads.has_mask():
        masks = _through_branch(heads, "mask", features, rois)
        if masks.shape[1] != num_classes:
            raise ValueError(
                f"mask_predictor draws {masks.shape[1]} classes, box_predictor tells {num_classes} "
                "apart: they must agree"
            )


def _through_branch(heads: RoIHeads, branch: str, features: dict[str, Tensor], rois: Tensor) -> Any:
    """What the predictor of the branch says of ``rois [R, 5]``."""
    given: tuple[Any, ...] = (features, rois, [(PROBE_SIDE, PROBE_SIDE)])
    shown = "RoIs [R, 5] (image index, x1, y1, x2, y2)"
    for name in (f"{branch}_roi_pool", f"{branch}_head", f"{branch}_predictor"):
        part = getattr(heads, name)
        try:
            output = part(*given)
        except Exception as error:
            kind = f"{type(part).__module__}.{type(part).__qualname__}"
            raise ValueError(f"{name}, a {kind}, cannot take {shown}: {error}") from error
        if isinstance(output, Tensor):
            given, shown = (output,), f"{list(output.shape)} from the part before it"
    return output
