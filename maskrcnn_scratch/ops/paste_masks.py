"""Pasting: masks in the frames of their boxes -> masks in the frame of the image.

Letters: ``N`` masks, ``M`` mask side, ``H W`` the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops._library import NAMESPACE, compiled, kernels


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes each mask to its box and puts it there, bilinearly, soft values staying soft.

    Conventions are those of torchvision's ``paste_masks_in_image``: the mask gets a border of one
    zero pixel, the box grows by ``(M + 2) / M`` about its centre and is truncated to whole pixels,
    both ends included. On the CPU only the pixels under the boxes take time and memory: the rest of
    the result are pages that the operating system has not handed out yet.

    Args:
        masks: ``[N, 1, M, M]``, float.
        boxes: ``[N, 4]`` in image pixels; they may reach beyond the image. NaN and inf give an
            empty mask.
        size: ``(height, width)`` of the image.

    Returns:
        ``[N, 1, H, W]`` in the masks' dtype, interpolated in float32 (float64 for float64), within
        1e-6 of torchvision's for values in 0-1. There is no gradient.

    Raises:
        RuntimeError: shapes that do not fit.
    """
    height, width = size
    if boxes.dtype in (torch.float16, torch.bfloat16):
        boxes = boxes.float()
    return kernels.paste_masks(masks.detach(), boxes.detach(), height, width)


def _fake(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    return masks.new_empty((masks.shape[0], 1, height, width))


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::paste_masks", _fake)
