"""Binary masks as COCO run lengths (RLE), computed in ``csrc/mask_rle``.

Shapes: see ``structures``. Functions take numpy arrays and return plain dicts. They run on the CPU
without Python's global interpreter lock.

Raises:
    ValueError: from any function, for a text that is damaged or that does not fit its size, and
        for a size that is not of whole pixels, is empty or has 2^32 pixels or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike
from torch import Tensor

from maskrcnn_scratch.ops._library import kernels


class Rle(TypedDict):
    """COCO's compressed RLE, ready for JSON."""

    size: list[int]  # (height, width)
    counts: str


def encode(mask: ArrayLike) -> Rle:
    """Mask [H, W], in which non-zero pixels are on, as RLE."""
    pixels = np.asarray(mask)
    if pixels.ndim != 2:
        raise ValueError(f"mask must be [H, W], got shape {tuple(pixels.shape)}")
    return _rle(kernels.rle_encode(_tensor(pixels != 0, np.uint8)), pixels.shape)


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """RLE as a uint8 mask [H, W] of 0 and 1."""
    size = _sides(rle["size"])
    kernels.rle_area(rle["counts"], *size)  # raises before memory of a wrong size is asked for
    mask = np.zeros(size, np.uint8)
    kernels.rle_decode(rle["counts"], torch.from_numpy(mask))
    return mask


def area(rle: Mapping[str, Any]) -> int:
    """Number of pixels that are on."""
    return kernels.rle_area(rle["counts"], *_sides(rle["size"]))


def bounding_box(rle: Mapping[str, Any]) -> list[float]:
    """(x, y, width, height) in pixels around the pixels that are on; zeros for an empty mask."""
    return kernels.rle_bounding_box(rle["counts"], *_sides(rle["size"]))


def merge(rles: Sequence[Mapping[str, Any]], intersect: bool = False) -> Rle:
    """Union, or with ``intersect`` intersection, of at least one mask, all of one size."""
    sizes = {_sides(rle["size"]) for rle in rles}
    if len(sizes) != 1:
        raise ValueError(f"masks to merge must share one size, got {sorted(sizes)}")
    size = sizes.pop()
    return _rle(kernels.rle_merge([rle["counts"] for rle in rles], *size, intersect), size)


def from_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """Union of polygons ``(x0, y0, x1, y1, ...)`` in pixels, on an image of ``size`` (H, W).

    Pixels are those of pycocotools (``rleFrPoly`` in its ``maskApi.c``). Points may lie outside the
    image. Raises ``ValueError`` for no polygon, fewer than 3 points, an odd count, or a coordinate
    that is not finite or more than 1e6 pixels away.
    """
    if not polygons:
        raise ValueError("segmentation holds no polygon")
    size = _sides(size)
    rles = [_rle(kernels.rle_from_polygon(_numbers(xy), *size), size) for xy in polygons]
    return rles[0] if len(rles) == 1 else merge(rles)


def from_segmentation(segmentation: object, size: tuple[int, int]) -> Rle:
    """An annotation's ``segmentation`` (polygons, compressed or uncompressed RLE) as RLE.

    ``size`` is the image's (H, W). Raises ``ValueError`` for anything else, and for an RLE of
    another size.
    """
    size = _sides(size)
    if isinstance(segmentation, Mapping):
        if not {"size", "counts"} <= segmentation.keys():
            raise ValueError("segmentation is an RLE without size or counts")
        rle_size, counts = segmentation["size"], segmentation["counts"]
        if not isinstance(rle_size, (list, tuple)) or len(rle_size) != 2:
            raise ValueError("segmentation is an RLE whose size is not [height, width]")
        if tuple(rle_size) != size:
            raise ValueError(f"mask is {_by(rle_size)} (height x width), its image {_by(size)}")
        if isinstance(counts, (str, bytes)):
            text = counts.decode("ascii") if isinstance(counts, bytes) else counts
            text.encode("ascii")  # raises, as the next line does, where the text is damaged
            kernels.rle_area(text, *size)
            return _rle(text, size)
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or lengths.dtype.kind != "i" or (lengths < 0).any():
            raise ValueError("segmentation is an RLE whose counts are no list of run lengths")
        if (lengths > 2**32 - 1).any():
            raise ValueError(f"segmentation is an RLE with a run of {lengths.max()} pixels")
        return _rle(kernels.rle_from_counts(_tensor(lengths, np.int64), *size), size)
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, (str, bytes)):
        if any(isinstance(polygon, (int, float)) for polygon in segmentation):
            raise ValueError("segmentation is a list of numbers; a list of polygons is needed")
        return from_polygons(segmentation, size)
    raise ValueError(f"segmentation is neither polygons nor RLE but {type(segmentation).__name__}")


def paste(
    masks: ArrayLike,
    boxes: ArrayLike,
    size: tuple[int, int],
    threshold: float = 0.5,
    num_threads: int = 1,
) -> list[Rle]:
    """Soft masks float32 [D, M, M] and their boxes [D, 4], on an image of ``size`` (H, W), as RLE.

    Pixels of at least ``threshold``, which is above 0, are on. The result is that of encoding
    ``ops.paste_masks`` at that threshold. Memory grows with the height of a box, not with the
    image.
    """
    texts = kernels.rle_paste(
        _tensor(masks, np.float32),
        _tensor(boxes, np.float32),
        *_sides(size),
        threshold,
        num_threads,
    )
    return [_rle(text, size) for text in texts]


def from_packed(packed: ArrayLike, size: tuple[int, int], num_threads: int = 1) -> list[Rle]:
    """Masks with one bit per pixel, as RLE.

    ``packed`` is int64 [D, W, ceil(H / 64)], from ``ops.paste_masks_packed``; ``size`` is the
    image's (H, W).
    """
    texts = kernels.rle_from_packed(_tensor(packed, np.int64), *_sides(size), num_threads)
    return [_rle(text, size) for text in texts]


def _rle(counts: str, size: Sequence[int]) -> Rle:
    return {"size": [int(side) for side in size], "counts": counts}


def _sides(size: Sequence[Any]) -> tuple[int, int]:
    """(height, width) in the range of int64; what else they must be, the kernels check."""
    try:
        height, width = map(index, size)
    except (TypeError, ValueError):
        raise ValueError(f"mask size must be height and width in pixels, got {size!r}") from None
    if not all(-(2**63) <= side < 2**63 for side in (height, width)):
        raise ValueError(f"mask size {height} x {width} is empty or too large")
    return height, width


def _tensor(array: ArrayLike, dtype: DTypeLike) -> Tensor:
    return torch.from_numpy(np.require(array, dtype, ["C", "W"]))


def _numbers(xy: ArrayLike) -> Tensor:
    try:
        return _tensor(xy, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a polygon is x0, y0, x1, y1, ... in numbers ({error})") from None


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
