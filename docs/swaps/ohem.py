"""Online hard example mining (Shrivastava et al. 2016, section 4): train on what is wrong most.

A sampler that asks for the loss of each proposal and takes the highest, whatever the class. (The
paper first removes proposals that overlap by NMS; a sampler does not see boxes.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn


class HardExamples:
    """An ``interfaces.Sampler``; positives have no fixed share of the boxes."""

    def __init__(self, batch_size_per_image: int) -> None:
        self.batch_size_per_image = batch_size_per_image

    def __call__(
        self,
        labels: list[Tensor],
        generator: torch.Generator | None = None,
        *,
        losses: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        positives, negatives = [], []
        for of_image, loss in zip(labels, losses, strict=True):
            allowed = (of_image >= 0).nonzero().squeeze(1)
            number = min(self.batch_size_per_image, len(allowed))
            hardest = allowed[loss[allowed].topk(number).indices]
            positives.append(hardest[of_image[hardest] >= 1])
            negatives.append(hardest[of_image[hardest] == 0])
        return positives, negatives


def build(num_classes: int, box_batch_size_per_image: int = 32, **options: Any) -> MaskRCNN:
    sampler = HardExamples(box_batch_size_per_image)
    return small_maskrcnn(num_classes, box_fg_bg_sampler=sampler, **options)
