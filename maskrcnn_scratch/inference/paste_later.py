"""Masks that leave the model as it predicts them, and are pasted or encoded when they are needed.

100 masks of 28 x 28 are 0.3 MB; pasted into an image of 800 x 1333 they are 427 MB, which would
have to be copied from a GPU, and which files and pictures do not need: they take the masks as RLE.
The CPU's kernel gives the same bits as that of the GPU (``ops.paste_masks``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from maskrcnn_scratch.evaluation.model_results import (
    MASK_THRESHOLD,
    detect_with_paste,
    encode_masks,
)
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.ops import paste_masks, paste_masks_rle
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


def encode(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with its masks, if any, as a list of D RLEs, thresholded at 0.5."""
    masks = result.get("masks")
    if isinstance(masks, MasksInBoxes):
        rles = paste_masks_rle(masks.masks, masks.boxes, masks.size, MASK_THRESHOLD)
        return {**result, "masks": rles}
    return encode_masks(result)


def can_paste_later(model: nn.Module) -> bool:
    """Whether a model gives the same results with ``detect_without_pasting``.

    It must be one of this package that pastes with the default function, and nothing else may see
    its masks.
    """
    return (
        isinstance(model, GeneralizedRCNN)
        and type(model).forward is GeneralizedRCNN.forward
        and type(model).detect is GeneralizedRCNN.detect
        and not (model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model))
        and getattr(model.transform, "paste", None) is paste_masks
        and not model.roi_heads.branches
    )


def detect_without_pasting(model: GeneralizedRCNN, images: list[Tensor]) -> list[Result]:
    """``model(images)`` with ``MasksInBoxes`` for the masks."""
    return detect_with_paste(model, images, MasksInBoxes)
