"""A keypoint branch (He et al. 2017, "Mask R-CNN", section 5): a heat map per keypoint and object.

Targets have ``keypoints [G, J, 3]`` (x, y, visible) in pixels, as torchvision's. Images without
that field take no part in the loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN, MultiScaleRoIAlign
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.structures import Detections, Result, boxes_to_rois, list_to_rois


def keypoint_loss(logits: Tensor, boxes: Tensor, keypoints: Tensor) -> Tensor:
    """Mean cross entropy over the locations of each map ``[R, J, M, M]`` that has its keypoint."""
    side = logits.shape[-1]
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    cell = ((keypoints[..., :2] - low) / (high - low) * side).floor()  # [R, J, 2]
    used = (keypoints[..., 2] > 0) & ((cell >= 0) & (cell < side)).all(2)
    index = (cell[..., 1] * side + cell[..., 0]).where(used, -1).long()  # [R, J]
    maps = logits.flatten(2).flatten(0, 1)  # [R * J, M^2]
    total = F.cross_entropy(maps, index.flatten(), ignore_index=-1, reduction="sum")
    return total / used.sum().clamp(min=1)


class KeypointBranch(nn.Module):
    """A ``stage_interfaces.Branch``: adds ``keypoints [D, J, 3]`` to the results."""

    def __init__(self, pool: MultiScaleRoIAlign, channels: int, num_keypoints: int) -> None:
        super().__init__()
        self.pool, self.num_keypoints = pool, num_keypoints
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(channels, num_keypoints, 4, stride=2, padding=1),
        )

    def predict(self, features: Any, rois: Tensor, padded_size: Any) -> Tensor:
        return self.head(self.pool(features, rois, [padded_size])).float()

    def losses(
        self, features: Any, samples: Any, targets: Any, padded_size: Any
    ) -> dict[str, Tensor]:
        boxes, matched, labels = samples.of_objects()
        rois = list_to_rois(boxes)  # [R, 5]
        logits = self.predict(features, rois, padded_size)  # [R, J, M, M]
        absent = rois.new_zeros((1, self.num_keypoints, 3))
        points = [
            target["keypoints"][index] if "keypoints" in target else absent.repeat(len(index), 1, 1)
            for target, index in zip(targets, matched, strict=True)
        ]  # [R_n, J, 3] per image
        visible = torch.cat(points) * (labels > 0)[:, None, None]
        return {"loss_keypoint": keypoint_loss(logits, rois[:, 1:], visible)}

    def detect(self, features: Any, detections: Detections, padded_size: Any) -> dict[str, Tensor]:
        rois = boxes_to_rois(detections.boxes)  # [N * D, 5]
        maps = self.predict(features, rois, padded_size)
        best, index = maps.flatten(2).max(dim=2)  # [N * D, J]
        side = maps.shape[-1]
        cell = torch.stack((index % side, index // side), dim=2) + 0.5
        points = rois[:, None, 1:3] + cell / side * (rois[:, None, 3:] - rois[:, None, 1:3])
        keypoints = torch.cat((points, best[..., None]), dim=2)  # x, y, logit
        return {"keypoints": keypoints.reshape(*detections.scores.shape, *keypoints.shape[1:])}

    def postprocess(self, result: Result, image_size: Tensor, original: tuple[int, int]) -> Result:
        scale = (torch.tensor(original, device=image_size.device) / image_size).flip(0)
        return {**result, "keypoints": result["keypoints"] * F.pad(scale, (0, 1), value=1.0)}


def build(num_classes: int, num_keypoints: int = 4, **options: Any) -> MaskRCNN:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2, canonical_scale=64, canonical_level=3)
    branch = KeypointBranch(pool, 64, num_keypoints)
    return small_maskrcnn(num_classes, branches={"keypoint": branch}, **options)
