"""Binary masks as COCO run lengths (RLE): thin, typed access to ``csrc/mask_rle``.

Legend: H height, W width, D detections, M side of a soft mask. Numpy in, plain dicts out; no
tensors, so that workers and evaluation need nothing else.
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
    """Mask [H, W], anything non-zero being on, to RLE."""
    pixels = np.asarray(mask)
    if pixels.ndim != 2:
        raise ValueError(f"mask must be [H, W], got shape {tuple(pixels.shape)}")
    return _rle(_library().encode((pixels != 0).view(np.uint8)), pixels.shape)


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """RLE to a uint8 mask [H, W] of 0 and 1."""
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

    Rasterised pixel for pixel as pycocotools does (``rleFrPoly`` in its ``maskApi.c``). Raises
    ``ValueError`` for no polygon, fewer than 3 points, an odd count or a coordinate that is not
    finite.
    """
    if not polygons:
        raise ValueError("segmentation holds no polygon")
    polygon = _library().polygon
    rles = [_rle(polygon(_coordinates(xy), *size), size) for xy in polygons]
    return rles[0] if len(rles) == 1 else merge(rles)


def from_segmentation(segmentation: object, size: tuple[int, int]) -> Rle:
    """An annotation's ``segmentation`` (polygons, compressed or uncompressed RLE) as RLE.

    ``size`` is the image's (H, W). Raises ``ValueError`` for anything else, and for an RLE of
    another size.
    """
    if isinstance(segmentation, Mapping):
        if not {"size", "counts"} <= segmentation.keys():
            raise ValueError("segmentation is an RLE without size or counts")
        given = segmentation["size"]
        if not isinstance(given, (list, tuple)) or [*map(type, given)] != [int, int]:
            raise ValueError("segmentation is an RLE whose size is not (height, width)")
        if tuple(given) != tuple(size):
            raise ValueError(
                f"mask is {_by(segmentation['size'])} (height x width), its image {_by(size)}"
            )
        counts = segmentation["counts"]
        if isinstance(counts, (str, bytes)):
            text = counts if isinstance(counts, bytes) else counts.encode("ascii", "replace")
            _library().to_counts(text, *size)  # raises where the text is damaged
            return _rle(text.decode("ascii"), size)
        pixels = size[0] * size[1]
        if not isinstance(counts, (list, tuple)) or not all(
            type(length) is int and 0 <= length <= pixels for length in counts
        ):
            raise ValueError(
                "segmentation is an RLE whose counts are no list of run lengths inside the image"
            )
        return _rle(_library().from_counts(counts, *size), size)
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

    Pixels of at least ``threshold``, which is above 0, are on. Identical to encoding
    ``ops.paste_masks`` at that threshold, in memory that grows with one box's height rather than
    with the image.
    """
    texts = _library().paste(masks, boxes, *size, threshold, num_threads)
    return [_rle(text, size) for text in texts]


def from_packed(packed: ArrayLike, size: tuple[int, int], num_threads: int = 1) -> list[Rle]:
    """Masks of one bit a pixel, int64 [D, W, ceil(H / 64)] from ``ops.paste_masks_packed``, as RLE.

    ``size`` is the image's (H, W).
    """
    words = np.asarray(packed, np.int64).view(np.uint64)
    return [_rle(text, size) for text in _library().packed(words, *size, num_threads)]


def _coordinates(polygon: object) -> np.ndarray:
    """A polygon's numbers, float64; ``ValueError`` where it is no flat list of them."""
    try:
        numbers = np.asarray(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty((0, 0))
    if numbers.ndim != 1:
        raise ValueError("a polygon is no list of numbers")
    return numbers


def _rle(counts: str, size: Sequence[int]) -> Rle:
    return {"size": [int(side) for side in size], "counts": counts}


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
