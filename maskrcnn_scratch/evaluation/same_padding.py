"""Batches of images that are padded to the same size, so that batching changes no result.

Padding changes features: convolutions near it read zeros where an image alone would end, and the
feature pyramid passes that on. torchvision's models behave in the same way. If each image of a
batch would be padded to the size of the batch when alone, results depend on the batch only by
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from torch import Tensor, nn

from maskrcnn_scratch.transform import GeneralizedRCNNTransform, image_size


def group_by_padding(model: nn.Module, images: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the images that can form a batch together, in the order of the first of each.

    Args:
        model: in eval mode. If it has no ``transform`` of this package, images of the same shape
            form a batch.
        images: ``[3, H, W]`` each.
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
