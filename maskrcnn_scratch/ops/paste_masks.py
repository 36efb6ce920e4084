"""Pasting: from masks in the frame of their boxes to masks in the frame of the image.

The result can be soft values, one bit per pixel, or COCO RLE.

Shapes: see ``structures``; ``D`` masks of any images. Step by step in ``reference/paste_masks.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.ops._library import NAMESPACE, compiled, kernels
from maskrcnn_scratch.structures import at_least_float32


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes each mask to its box, bilinearly, and puts it into an image of zeros.

    Conventions are those of torchvision's ``paste_masks_in_image``: the mask gets a border of one
    zero pixel, and the box grows by ``(M + 2) / M`` about its centre and is truncated to whole
    pixels, both ends included. On the CPU only pixels under the boxes are written; the others are
    zero pages that the operating system has not allocated yet.

    Args:
        masks: ``[D, 1, M, M]``, float.
        boxes: ``[D, 4]`` in image pixels; they may reach beyond the image. A box with NaN or inf
            gives an empty mask.
        size: ``(height, width)`` of the image.

    Returns:
        ``[D, 1, H, W]`` in the dtype of the masks, interpolated in float32 (float64 for float64).
        Like torchvision's, within 1.1e-5 of exact arithmetic for masks of 28 x 28 values in 0-1
        (``parity.bilinear`` derives the bound). There is no gradient.

    Raises:
        RuntimeError: shapes that do not fit.
    """
    height, width = size
    return kernels.paste_masks(masks.detach(), at_least_float32(boxes.detach()), height, width)


def paste_masks_packed(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """:func:`paste_masks` ``>= threshold`` with one bit per pixel: 1/32 of the size of float32.

    Bits have the order of COCO's runs, column after column: pixel ``(y, x)`` is bit ``y % 64``,
    counted from the lowest, of word ``[:, x, y // 64]``. Bits below the image are 0.
    ``ops.rle.from_packed`` makes COCO RLE of them.

    Args:
        masks: ``[D, 1, M, M]``, float; half types are computed in float32.
        boxes: ``[D, 4]``, as in :func:`paste_masks`.
        size: ``(height, width)`` of the image.
        threshold: above 0.

    Returns:
        int64 ``[D, W, ceil(H / 64)]``.

    Raises:
        RuntimeError: shapes that do not fit, or a threshold of 0 or less, which pixels outside the
            box would reach too.
    """
    height, width = size
    return kernels.paste_masks_packed(
        at_least_float32(masks.detach()), at_least_float32(boxes.detach()), height, width, threshold
    )


def paste_masks_rle(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> list[rle.Rle]:
    """:func:`paste_masks` ``>= threshold`` of each mask as COCO RLE, computed in float32.

    No image is stored: runs are counted on the CPU, column by column under each box. From another
    device the soft masks are copied, which are smaller than the pasted ones.

    Args:
        masks: ``[D, 1, M, M]``, float.
        boxes: ``[D, 4]``, as in :func:`paste_masks`.
        size: ``(height, width)`` of the image, both at least 1.
        threshold: above 0.

    Returns:
        ``D`` RLEs.

    Raises:
        ValueError: shapes that do not fit, or a threshold of 0 or less.
    """
    return rle.paste(
        masks.flatten(0, 1).float().numpy(force=True),  # [D, M, M]
        boxes.float().numpy(force=True),
        size,
        threshold,
        torch.get_num_threads(),
    )


def _fake(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    return masks.new_empty((masks.shape[0], 1, height, width))


def _fake_packed(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    return masks.new_empty((masks.shape[0], width, (height + 63) // 64), dtype=torch.int64)


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::paste_masks", _fake)
    torch.library.register_fake(f"{NAMESPACE}::paste_masks_packed", _fake_packed)
