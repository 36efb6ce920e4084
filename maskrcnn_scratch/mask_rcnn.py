"""Mask R-CNN (He et al. 2017): Faster R-CNN with a mask branch."""

from __future__ import annotations

from typing import Any

from maskrcnn_scratch import interfaces
from maskrcnn_scratch.conventions import Conventions
from maskrcnn_scratch.faster_rcnn import (
    FasterRCNN,
    default_roi_pool,
    number_of_classes,
    out_channels_of,
)
from maskrcnn_scratch.roi_heads import MaskRCNNHeads, MaskRCNNPredictor


class MaskRCNN(FasterRCNN):
    """Faster R-CNN with a third branch, which predicts a mask for each detection (section 3).

    Args:
        backbone, num_classes: as for ``FasterRCNN``.
        *args: the arguments of ``FasterRCNN`` that follow.
        **kwargs: all other arguments of ``FasterRCNN``.
        mask_roi_pool: by default 14 x 14 from the levels "0" to "3".
        mask_head, mask_predictor: by default ``MaskRCNNHeads`` and ``MaskRCNNPredictor``; none if
            the whole stage is passed in as ``roi_heads``.
        conventions: for the default parts; see ``Conventions``.

    Raises:
        ValueError: parts that do not fit together.
    """

    def __init__(
        self,
        backbone: interfaces.Backbone,
        num_classes: int | None = None,
        *args: Any,
        mask_roi_pool: interfaces.RoIPooler | None = None,
        mask_head: interfaces.MaskHead | None = None,
        mask_predictor: interfaces.MaskPredictor | None = None,
        conventions: Conventions = Conventions.torchvision(),  # noqa: B008, it is immutable
        **kwargs: Any,
    ) -> None:
        if kwargs.get("roi_heads") is None:
            classes = number_of_classes(num_classes, "mask_predictor", mask_predictor)
            if mask_roi_pool is None:
                mask_roi_pool = default_roi_pool(14, conventions, channels_last=True)
            if mask_head is None:
                layers = (256, 256, 256, 256)
                mask_head = MaskRCNNHeads(out_channels_of(backbone), layers, dilation=1)
            if mask_predictor is None:
                mask_predictor = MaskRCNNPredictor(256, 256, classes)
        super().__init__(  # type: ignore[misc]  # args end before mask_roi_pool
            backbone,
            num_classes,
            *args,
            mask_roi_pool=mask_roi_pool,
            mask_head=mask_head,
            mask_predictor=mask_predictor,
            conventions=conventions,
            **kwargs,
        )
