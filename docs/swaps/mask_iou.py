"""Mask IoU (Huang et al. 2019, "Mask Scoring R-CNN", section 3): how good is each predicted mask?

The class score says little about the mask. This branch predicts the IoU of the mask with the
object's, and the score of a detection is multiplied by it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN, MultiScaleRoIAlign
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.structures import Detections, boxes_to_rois, list_to_rois, of_classes
from maskrcnn_scratch.targets.roi_targets import project_masks_on_boxes


class MaskIoU(nn.Module):
    """A ``stage_interfaces.Branch``: new scores, and ``mask_iou [D]`` in 0-1 in the results."""

    def __init__(self, pool: MultiScaleRoIAlign, channels: int) -> None:
        super().__init__()
        self.pool = pool
        self.head = nn.Sequential(
            nn.Conv2d(channels + 1, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 1),
        )

    def predict(self, features: Any, rois: Tensor, size: tuple[int, int], masks: Tensor) -> Tensor:
        """IoU ``[R]`` of ``masks [R, 1, M, M]``, probabilities."""
        pooled = self.pool(features, rois, [size])  # [R, F, M / 2, M / 2]
        small = F.max_pool2d(masks, 2).to(pooled.dtype)
        return self.head(torch.cat((pooled, small), dim=1))[:, 0].float().sigmoid()

    def losses(
        self,
        features: Any,
        samples: Any,
        targets: Any,
        padded_size: tuple[int, int],
        mask_logits: Tensor,
    ) -> dict[str, Tensor]:
        """Squared error of the IoU; no gradient reaches the mask."""
        boxes, matched, labels = samples.of_objects()
        rows = torch.arange(len(labels), device=labels.device)
        masks = of_classes(mask_logits.detach(), rows, labels.clamp(min=0)).sigmoid()  # [R, M, M]
        expected = torch.cat(
            [
                project_masks_on_boxes(target["masks"], each, of_image, masks.shape[-1])
                for target, each, of_image in zip(targets, boxes, matched, strict=True)
            ]
        )
        one, other = (masks > 0.5).flatten(1), (expected > 0.5).flatten(1)  # inside the box
        iou = (one & other).sum(1) / (one | other).sum(1).clamp(min=1)
        predicted = self.predict(features, list_to_rois(boxes), padded_size, masks[:, None])
        error = (predicted - iou).square().where(labels > 0, 0)
        return {"loss_mask_iou": error.sum() / (labels > 0).sum().clamp(min=1)}

    def detect(
        self, features: Any, detections: Detections, padded_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        assert detections.masks is not None
        rois = boxes_to_rois(detections.boxes)  # [N * D, 5]
        iou = self.predict(features, rois, padded_size, detections.masks.flatten(0, 1))
        iou = iou.reshape(detections.scores.shape)  # [N, D]
        return {"mask_iou": iou, "scores": detections.scores * iou}


def build(num_classes: int, **options: Any) -> MaskRCNN:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2, canonical_scale=64, canonical_level=3)
    return small_maskrcnn(num_classes, branches={"mask_iou": MaskIoU(pool, 64)}, **options)
