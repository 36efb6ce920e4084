"""A small model to swap parts of, its input, and parts that several tests swap in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import AnchorGenerator, MaskRCNN, MaskRCNNPredictor
from maskrcnn_scratch.targets.sampler import BalancedPositiveNegativeSampler

SIZES = ((16,), (32,), (64,))


class Backbone(nn.Module):
    """Three maps of strides 4, 8 and 16."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [self.conv(x)]
        for _ in range(2):
            maps.append(F.max_pool2d(maps[-1], 2))
        return {str(i): feature for i, feature in enumerate(maps)}


def build(num_classes: int | None = 3, **parts: Any) -> MaskRCNN:
    torch.manual_seed(0)
    options: dict[str, Any] = {"min_size": 64}
    if "rpn" not in parts:
        options["rpn_anchor_generator"] = AnchorGenerator(SIZES, (1.0, 2.0))
        options |= {"rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 50}
    if "roi_heads" not in parts:
        options |= {"box_batch_size_per_image": 32, "box_detections_per_img": 10}
        options["mask_head"] = nn.Conv2d(8, 256, 1)
    return MaskRCNN(Backbone(), num_classes, **{**options, **parts})


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 64, 80, generator=generator), torch.rand(3, 72, 64, generator=generator)]


def targets() -> list[dict[str, Tensor]]:
    """Two objects, and none."""
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 60.0, 60.0]])
    masks = torch.zeros(2, 64, 80, dtype=torch.uint8)
    masks[0, 8:40, 8:40] = masks[1, 20:60, 30:60] = 1
    return [
        {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks},
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 72, 64, dtype=torch.uint8),
        },
    ]


def train(model: MaskRCNN) -> dict[str, Tensor]:
    losses = model.train().losses(images(), targets(), torch.Generator().manual_seed(0))
    sum(losses.values(), torch.zeros(())).backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())
    for parameter in model.parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())
    return losses


@torch.no_grad()
def detect(model: MaskRCNN) -> list[dict[str, Tensor]]:
    model.roi_heads.score_thresh = 0.0
    return model.eval().detect(images())


def select_nothing(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, max_out: int, num_groups: int
) -> tuple[Tensor, Tensor]:
    num_images = len(boxes)
    return groups.new_zeros((num_images, 0)), groups.new_zeros(num_images)


class Hardest(BalancedPositiveNegativeSampler):
    """OHEM: the boxes with the highest losses, which it remembers."""

    def __call__(  # type: ignore[override]
        self,
        labels: list[Tensor],
        generator: torch.Generator | None = None,
        *,
        losses: list[Tensor],
        scores: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        self.seen = labels, losses, scores
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for of_image, loss in zip(labels, losses, strict=True):
            kept = loss.masked_fill(of_image < 0, -1).topk(min(64, len(loss))).indices
            found[0].append(kept[of_image[kept] >= 1])
            found[1].append(kept[of_image[kept] == 0])
        return found


class AgnosticPredictor(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.cls_score = nn.Linear(1024, num_classes)
        self.bbox_pred = nn.Linear(1024, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


def class_agnostic(
    predictor: type[MaskRCNNPredictor] = MaskRCNNPredictor, **parts: Any
) -> MaskRCNN:
    return build(
        None, box_predictor=AgnosticPredictor(), mask_predictor=predictor(256, 256, 1), **parts
    )
