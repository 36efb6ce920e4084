"""Masks that leave the model's device as it predicts them, and are pasted on the CPU.

100 masks of 28 x 28 are 0.3 MB; pasted into an image of 800 x 1333 they are 427 MB, which would
have to be copied from a GPU. The CPU's kernel gives the same bits as that of the GPU, and writes
only the pixels under the boxes (``ops.paste_masks``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskrcnn_scratch.evaluation.model_results import detect_with_paste
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.ops import paste_masks
from maskrcnn_scratch.structures import Result


@dataclass
class MasksInBoxes:
    """Takes the place of pasted masks in a result.

    Attributes:
        masks: ``[D, 1, M, M]``, on the model's device.
        boxes: ``[D, 4]`` in the pixels of the original image.
        size: (height, width) of that image.
    """

    masks: Tensor
    boxes: Tensor
    size: tuple[int, int]

    def __getitem__(self, keep: Tensor) -> MasksInBoxes:
        """Those for which ``keep [D]`` is true."""
        return MasksInBoxes(self.masks[keep], self.boxes[keep], self.size)

    def cpu(self) -> Tensor:
        """``[D, 1, H, W]`` on the CPU."""
        return paste_masks(self.masks.cpu(), self.boxes.cpu(), self.size)


def can_paste_later(model: nn.Module, device: torch.device) -> bool:
    """Whether a model on ``device`` gives the same results with ``detect_without_pasting``.

    It must be one of this package that pastes with the default function, and nothing else may see
    its masks. On the CPU there is nothing to gain.
    """
    return (
        device.type != "cpu"
        and isinstance(model, GeneralizedRCNN)
        and type(model).forward is GeneralizedRCNN.forward
        and type(model).detect is GeneralizedRCNN.detect
        and not (model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model))
        and getattr(model.transform, "paste", None) is paste_masks
        and not model.roi_heads.branches
    )


def detect_without_pasting(model: GeneralizedRCNN, images: list[Tensor]) -> list[Result]:
    """``model(images)`` with ``MasksInBoxes`` for the masks."""
    return detect_with_paste(model, images, MasksInBoxes)
