"""PointRend-like masks (Kirillov et al. 2020, "PointRend: Image Segmentation as Rendering").

A coarse mask is doubled in size again and again; after each time the most uncertain points are
predicted anew from fine features (section 3.1, inference). Here training does the same (the paper
samples points at random), fine features are RoIAlign's from the finest level, and one mask serves
all classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN, MultiScaleRoIAlign
from maskrcnn_scratch.builders.small import small_maskrcnn


class PointRend(nn.Module):
    """An ``interfaces.MaskPredictor``: fine features ``[R, E, S, S]`` -> ``[R, 1, M, M]``.

    Args:
        channels: of the features, ``E``.
        coarse: side of the first mask; each of ``doublings`` doubles it, ``M`` is the last.
        points: predicted anew after each doubling.
    """

    def __init__(
        self, channels: int, coarse: int = 7, doublings: int = 2, points: int = 98
    ) -> None:
        super().__init__()
        self.doublings, self.points = doublings, points
        self.coarse = nn.Sequential(
            nn.AdaptiveAvgPool2d(coarse),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, 1),
        )
        self.point_head = nn.Sequential(  # on the features and the coarse logit of a point
            nn.Conv1d(channels + 1, channels, 1), nn.ReLU(inplace=True), nn.Conv1d(channels, 1, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        coarse = logits = self.coarse(features)  # [R, 1, coarse, coarse]
        for _ in range(self.doublings):
            logits = F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
            side = logits.shape[-1]
            flat = logits.flatten(2)  # [R, 1, side^2]
            uncertain = (-flat.detach().abs()).topk(min(self.points, side**2), dim=2).indices
            x, y = uncertain % side, uncertain // side
            centers = (torch.stack((x, y), dim=3) + 0.5) / side * 2 - 1  # [R, 1, points, 2]
            centers = centers.to(features.dtype)
            given = [F.grid_sample(of, centers, align_corners=False) for of in (features, coarse)]
            predicted = self.point_head(torch.cat(given, dim=1)[:, :, 0])  # [R, 1, points]
            logits = flat.scatter(2, uncertain, predicted).reshape_as(logits)
        return logits


def build(num_classes: int, **options: Any) -> MaskRCNN:
    fine = MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2)  # stride 4
    return small_maskrcnn(
        num_classes,
        mask_roi_pool=fine,
        mask_head=nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True)),
        mask_predictor=PointRend(64),
        **options,
    )
