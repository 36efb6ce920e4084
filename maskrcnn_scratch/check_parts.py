"""Whether the parts of a model fit together, found out when it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maskrcnn_scratch.structures import ImageList

if TYPE_CHECKING:
    from maskrcnn_scratch.mask_rcnn import GeneralizedRCNN

PROBE_SIDE = 64  # pixels: the least that gives every level of a ResNet-50-FPN a cell


@torch.no_grad()
def check_parts(model: GeneralizedRCNN) -> None:
    """Sends one small black image through backbone and RPN and compares shapes.

    A backbone that can't take so small an image is checked when it is first used instead.

    Raises:
        ValueError: the backbone's levels, channels or names are not what the anchor generator,
            the RPN head or the poolers expect.
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
