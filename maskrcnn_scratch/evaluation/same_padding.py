"""Batches that change no result: images that are padded to the same size.

Convolutions see the padding: near it, and through strides and the pyramid some way from it, features
differ from those of the image alone. torchvision's models behave in the same way. Images that a
batch pads no further than each would be padded by itself do not change each other's results, except
for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from torch import Tensor, nn

from maskrcnn_scratch.transform import GeneralizedRCNNTransform, image_size


def group_by_padding(model: nn.Module, images: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the images that can share a batch, in the order of their first.

    Args:
        model: in evaluation; where it has no ``transform`` of this package, images of the same
            shape share a batch.
        images: ``[C, H, W]`` each.
    """
    transform = getattr(model, "transform", None)
    groups: dict[Hashable, list[int]] = {}
    for index, image in enumerate(images):
        key: Hashable = image.shape
        if isinstance(transform, GeneralizedRCNNTransform):
            divisor = transform.size_divisible
            sides = transform.resized_size(*image_size(image))
            key = tuple(math.ceil(side / divisor) * divisor for side in sides)
        groups.setdefault(key, []).append(index)
    return list(groups.values())
