"""Binary masks as COCO run lengths (RLE), computed in ``csrc/mask_rle``.

Shapes: ``H``, ``W``, ``D`` and ``M`` as in ``structures``. Functions take numpy arrays and return
plain dicts; they need no torch, so loader processes and evaluation can do without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike


class Rle(TypedDict):
    """COCO's compressed RLE, ready for JSON."""

    size: list[int]  # (height, width)
    counts: str


def encode(mask: ArrayLike) -> Rle:
    """Mask [H, W], in which non-zero pixels are on, as RLE."""
    pixels = np.asarray(mask)
    if pixels.ndim != 2:
        raise ValueError(f"mask must be [H, W], got shape {tuple(pixels.shape)}")
    return _rle(_library().encode((pixels != 0).view(np.uint8)), pixels.shape)


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """RLE as a uint8 mask [H, W] of 0 and 1."""
    mask = np.zeros(rle["size"], np.uint8)
    _library().decode(rle["counts"], mask)
    return mask


def area(rle: Mapping[str, Any]) -> int:
    """Number of pixels that are on."""
    return _library().area(rle["counts"], *rle["size"])


def bounding_box(rle: Mapping[str, Any]) -> list[float]:
    """(x, y, width, height) in pixels around the pixels that are on; zeros for an empty mask."""
    return list(_library().bounding_box(rle["counts"], *rle["size"]))


def merge(rles: Sequence[Mapping[str, Any]], intersect: bool = False) -> Rle:
    """Union, or with ``intersect`` intersection, of at least one mask, all of one size."""
    sizes = {tuple(rle["size"]) for rle in rles}
    if len(sizes) != 1:
        raise ValueError(f"masks to merge must share one size, got {sorted(sizes)}")
    size = sizes.pop()
    return _rle(_library().merge([rle["counts"] for rle in rles], *size, intersect), size)


def from_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """Union of polygons ``(x0, y0, x1, y1, ...)`` in pixels, on an image of ``size`` (H, W).

    Pixels are those of pycocotools (``rleFrPoly`` in its ``maskApi.c``). Points may lie outside the
    image. Raises ``ValueError`` for no polygon, fewer than 3 points, an odd count, or a coordinate
    that is not finite or more than 1e6 pixels away.
    """
    if not polygons:
        raise ValueError("segmentation holds no polygon")
    rles = [_rle(_library().polygon(_numbers(xy), *size), size) for xy in polygons]
    return rles[0] if len(rles) == 1 else merge(rles)


def from_segmentation(segmentation: object, size: tuple[int, int]) -> Rle:
    """An annotation's ``segmentation`` (polygons, compressed or uncompressed RLE) as RLE.

    ``size`` is the image's (H, W). Raises ``ValueError`` for anything else, and for an RLE of
    another size.
    """
    if isinstance(segmentation, Mapping):
        if not {"size", "counts"} <= segmentation.keys():
            raise ValueError("segmentation is an RLE without size or counts")
        rle_size, counts = segmentation["size"], segmentation["counts"]
        if not isinstance(rle_size, (list, tuple)) or len(rle_size) != 2:
            raise ValueError("segmentation is an RLE whose size is not [height, width]")
        if tuple(rle_size) != tuple(size):
            raise ValueError(f"mask is {_by(rle_size)} (height x width), its image {_by(size)}")
        if isinstance(counts, (str, bytes)):
            text = counts.decode("ascii") if isinstance(counts, bytes) else counts
            _library().to_counts(text.encode("ascii"), *size)  # raises where the text is damaged
            return _rle(text, size)
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or lengths.dtype.kind != "i" or (lengths < 0).any():
            raise ValueError("segmentation is an RLE whose counts are no list of run lengths")
        if (lengths > 2**32 - 1).any():
            raise ValueError(f"segmentation is an RLE with a run of {lengths.max()} pixels")
        return _rle(_library().from_counts(lengths.astype(np.int64), *size), size)
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
    texts = _library().paste(masks, boxes, *size, threshold, num_threads)
    return [_rle(text, size) for text in texts]


def from_packed(packed: ArrayLike, size: tuple[int, int], num_threads: int = 1) -> list[Rle]:
    """Masks with one bit per pixel, as RLE.

    ``packed`` is int64 [D, W, ceil(H / 64)], from ``ops.paste_masks_packed``; ``size`` is the
    image's (H, W).
    """
    words = np.asarray(packed, np.int64).view(np.uint64)
    return [_rle(text, size) for text in _library().packed(words, *size, num_threads)]


def _rle(counts: str, size: Sequence[int]) -> Rle:
    return {"size": [int(side) for side in size], "counts": counts}


def _numbers(xy: object) -> np.ndarray:
    try:
        return np.asarray(xy, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a polygon is x0, y0, x1, y1, ... in numbers ({error})") from None


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _library() -> ModuleType:
    try:
        return import_module("maskrcnn_scratch._mask_rle")
    except ImportError as error:
        raise ImportError(
            "maskrcnn_scratch._mask_rle, the compiled mask code, is not built: install the package "
            f"where there is a C++ compiler, with pip install . ({error})"
        ) from None
