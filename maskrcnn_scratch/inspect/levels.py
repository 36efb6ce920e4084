"""Which level, row, column and shape an anchor has, and which level a RoI is pooled from.

Shapes: see ``structures``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.roi_heads.pooler import infer_scales
from maskrcnn_scratch.rpn import RegionProposalNetwork
from maskrcnn_scratch.structures import StageOutputs

NOT_AVAILABLE = "not available for this component"


@dataclass(frozen=True)
class AnchorLevel:
    """The anchors of one level: ``first`` to ``first + size``, by row, column and shape.

    Attributes:
        name: of the feature map.
        first, size: index of the first anchor, and how many there are.
        height, width: of the feature map.
        per_location: anchors per location, ``a``.
    """

    name: str
    first: int
    size: int
    height: int
    width: int
    per_location: int


class AnchorPlace(NamedTuple):
    """Where an anchor stands: ``level`` counts from 0, ``shape`` from 0 to ``a - 1``."""

    level: int
    row: int
    column: int
    shape: int


def anchor_levels(model: GeneralizedRCNN, stages: StageOutputs) -> list[AnchorLevel] | None:
    """The levels in the order of ``stages.anchors``.

    Returns:
        None if the model has a custom RPN, whose order of anchors is not known, or an anchor
        generator whose numbers do not add up to the anchors there are.
    """
    if getattr(type(model.rpn), "forward", None) is not RegionProposalNetwork.forward:
        return None
    per_location = list(model.rpn.anchor_generator.num_anchors_per_location())
    levels, first = [], 0
    if len(per_location) != len(stages.features):
        return None
    for (name, feature), count in zip(stages.features.items(), per_location, strict=True):
        height, width = feature.shape[-2:]
        size = height * width * count
        levels.append(AnchorLevel(name, first, size, height, width, count))
        first += size
    return levels if first == len(stages.anchors) else None


def anchor_place(levels: list[AnchorLevel], anchor: int) -> AnchorPlace:
    """Level, row, column and shape of the anchor with this index.

    Raises:
        IndexError: there is no such anchor.
    """
    for index, level in enumerate(levels):
        if level.first <= anchor < level.first + level.size:
            location, shape = divmod(anchor - level.first, level.per_location)
            row, column = divmod(location, level.width)
            return AnchorPlace(index, row, column, shape)
    raise IndexError(f"anchor {anchor}: there are {sum(level.size for level in levels)}")


def pooling_scales(pool: object, stages: StageOutputs) -> list[float] | None:
    """Feature pixels per image pixel of each map that a RoI pooler reads, finest first.

    Returns:
        None if the pooler does not name its maps in ``featmap_names``.
    """
    names = getattr(pool, "featmap_names", None)
    if names is None or any(name not in stages.features for name in names):
        return None
    features = [stages.features[name] for name in names]
    return list(
        getattr(pool, "scales", None) or infer_scales(features, [stages.images.padded_size])
    )


def pooling_levels(pool: object, stages: StageOutputs, boxes: Tensor) -> Tensor | None:
    """The level, from 0, that each of ``boxes [R, 4]`` is pooled from (FPN, Eq. 1), int64 ``[R]``.

    Returns:
        None if the pooler has no ``map_levels``.
    """
    scales = pooling_scales(pool, stages)
    map_levels = getattr(pool, "map_levels", None)
    return None if scales is None or map_levels is None else map_levels(boxes, scales)
