"""Cascade R-CNN (Cai and Vasconcelos 2018, section 4): three box heads, one after the other.

Each stage moves the boxes, and the next is trained with a higher IoU threshold on what it is given.
The first stages are ordinary ``RoIHeads``, and ``refine`` runs them before the last. (The paper
also averages the classifiers of the stages; here the last one decides.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_fasterrcnn, small_maskrcnn
from maskrcnn_scratch.ops.boxes import clip_boxes_to_image
from maskrcnn_scratch.structures import Proposals, boxes_to_rois


class Agnostic(nn.Module):
    """An ``interfaces.BoxPredictor`` whose deltas do not depend on the class."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


class Stages(nn.Module):
    """A ``stage_interfaces.Refine``: the stages before the last, each a ``RoIHeads``."""

    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(
        self, features: Any, proposals: Proposals, padded_size: tuple[int, int]
    ) -> Proposals:
        for stage in self.stages:
            proposals = self.moved(stage, features, proposals, padded_size)
        return proposals

    def losses(
        self, features: Any, proposals: Any, padded_size: Any, targets: Any, generator: Any = None
    ) -> tuple[dict[str, Tensor], Proposals]:
        found = {}
        for number, stage in enumerate(self.stages, 1):
            losses = stage.losses(features, proposals, padded_size, targets, generator)
            found |= {f"{name}_{number}": loss for name, loss in losses.items()}
            with torch.no_grad():
                proposals = self.moved(stage, features, proposals, padded_size)
        return found, proposals

    def moved(self, stage: Any, features: Any, proposals: Proposals, size: Any) -> Proposals:
        rois = boxes_to_rois(proposals.boxes)
        deltas = stage.predict_boxes(features, rois, size)[1].reshape(proposals.boxes.shape)
        boxes = stage.box_coder.decode(deltas, proposals.boxes)  # padding stays zero
        return replace(proposals, boxes=clip_boxes_to_image(boxes, size))


def build(num_classes: int, **options: Any) -> MaskRCNN:
    def of_stage(iou: float, weight: float) -> dict[str, Any]:
        weights = (weight, weight, weight / 2, weight / 2)
        thresholds = {"box_fg_iou_thresh": iou, "box_bg_iou_thresh": iou}
        predictor = Agnostic(256, num_classes)
        return {**options, **thresholds, "box_predictor": predictor, "bbox_reg_weights": weights}

    first, second, last = of_stage(0.5, 10.0), of_stage(0.6, 20.0), of_stage(0.7, 30.0)
    stages = [small_fasterrcnn(num_classes, **each).roi_heads for each in (first, second)]
    return small_maskrcnn(num_classes, refine=Stages(*stages), **last)
