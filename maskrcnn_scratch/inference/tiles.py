"""Sliced inference: detections in tiles of a large image, merged into those of the image.

A model resizes an image to about 800 x 1333 pixels, so that small objects of a large photograph
vanish. In tiles they keep their pixels. As in SAHI (Akyon et al. 2022, Slicing Aided Hyper
Inference), the model also runs on the whole image, for the objects that are larger than a tile.

Shapes: see ``structures``; h, w height and width of a tile. Masks are RLEs throughout, so that no
mask of the image's size is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn_scratch.evaluation.model_results import detect_rle
from maskrcnn_scratch.inference.merge_tiles import Piece, Rect, merge_pieces
from maskrcnn_scratch.inference.out_of_memory import naming_stage
from maskrcnn_scratch.inference.predictor import Predictor
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.structures import Result


class TiledPredictor(Predictor):
    """A :class:`Predictor` that runs the model on tiles; ``masks`` of its results are RLEs.

    Args:
        model: see :class:`Predictor`.
        tile: side of a tile in pixels.
        overlap: of neighbouring tiles, as a share of their side.
        batch_size: number of tiles per batch.
        **options: for :class:`Predictor`.
    """

    def __init__(
        self,
        model: nn.Module,
        tile: int,
        overlap: float = 0.2,
        batch_size: int = 1,
        **options: Any,
    ) -> None:
        _check(tile, overlap, batch_size)
        super().__init__(model, **options)
        self.tile, self.overlap, self.batch_size = tile, overlap, batch_size

    @torch.inference_mode()
    def _detect(self, images: Sequence[Tensor]) -> list[Result]:
        parameter = self._parameter()
        dtype = getattr(self.model, "image_dtype", None) or parameter.dtype
        return [
            naming_stage(
                lambda image=image: predict_tiled(  # type: ignore[misc]
                    self.model,
                    image.to(parameter.device, dtype, non_blocking=True),
                    self.tile,
                    self.overlap,
                    self.batch_size,
                )
            )
            for image in images
        ]


@torch.inference_mode()
def predict_tiled(
    model: nn.Module, image: Tensor, tile: int, overlap: float = 0.2, batch_size: int = 1
) -> dict[str, Any]:
    """Detections of a large image: of its tiles and of the whole, merged by ``merge_pieces``.

    If the image is not larger than a tile, the result is that of the model.

    Args:
        model: in eval mode, with results as of :class:`MaskRCNN`, on the device of the image.
        image: ``[3, H, W]``.
        tile: side of a tile in pixels.
        overlap: of neighbouring tiles, as a share of their side: at least the size of the small
            objects, so that each is whole in some tile.
        batch_size: number of tiles per batch.

    Returns:
        ``boxes [D, 4]``, ``labels [D]``, ``scores [D]`` on the CPU, best first, and with a mask
        branch ``masks``, a list of D RLEs. D is not bounded by the model's detections per image.

    Raises:
        ValueError: a tile or batch without pixels, or an overlap outside of 0 to 0.9.
    """
    _check(tile, overlap, batch_size)
    height, width = image.shape[-2:]
    rects = tile_rects(height, width, tile, overlap)
    whole = (0, 0, width, height)
    pieces = [Piece(whole, (height, width), _on_cpu(detect_rle(model, [image])[0]))]
    if rects == [whole]:
        return pieces[0].result
    for start in range(0, len(rects), batch_size):
        batch = rects[start : start + batch_size]
        found = detect_rle(model, [image[:, y1:y2, x1:x2] for x1, y1, x2, y2 in batch])
        for rect, result in zip(batch, found, strict=True):
            pieces.append(
                Piece(rect, (height, width), _place(_on_cpu(result), rect, height, width))
            )
    return merge_pieces(pieces)


def tile_rects(height: int, width: int, tile: int, overlap: float) -> list[Rect]:
    """(x1, y1, x2, y2) of the tiles of an image, row by row; neighbours overlap at least so much.

    All tiles have the same size: where the image is smaller than a tile, its own.
    """
    return [
        (x, y, min(x + tile, width), min(y + tile, height))
        for y in _starts(height, tile, overlap)
        for x in _starts(width, tile, overlap)
    ]


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Evenly spaced from 0 to ``side - tile``."""
    if side <= tile:
        return [0]
    step = max(int(tile * (1 - overlap)), 1)
    count = -(-(side - tile) // step) + 1
    return [i * (side - tile) // (count - 1) for i in range(count)]


def _check(tile: int, overlap: float, batch_size: int) -> None:
    if tile < 1 or batch_size < 1:
        raise ValueError(f"tile is {tile} and batch_size {batch_size}; both must be at least 1")
    if not 0 <= overlap <= 0.9:
        raise ValueError(f"overlap is {overlap}; it must be between 0 and 0.9")


def _on_cpu(result: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.cpu() if isinstance(value, Tensor) else value for key, value in result.items()
    }


def _place(result: dict[str, Any], rect: Rect, height: int, width: int) -> dict[str, Any]:
    """The detections of a tile in pixels of the image."""
    moved = dict(result)
    moved["boxes"] = result["boxes"] + result["boxes"].new_tensor([*rect[:2], *rect[:2]])
    if "masks" in result:
        moved["masks"] = [place_rle(mask, rect[:2], (height, width)) for mask in result["masks"]]
    return moved


def place_rle(mask: rle.Rle, corner: tuple[int, int], size: tuple[int, int]) -> rle.Rle:
    """The RLE of a tile as that of the image.

    Args:
        mask: RLE of size (h, w).
        corner: (x, y) of the tile in the image, which contains it.
        size: (H, W) of the image.
    """
    pixels = np.pad(rle.decode(mask), ((1, 1), (0, 0))).astype(np.int8)  # [h + 2, w]
    steps = np.diff(pixels, axis=0).T  # [w, h + 1]: 1 where a run starts, -1 after its end
    offset = corner[0] * size[0] + corner[1]
    starts, ends = (
        columns * size[0] + rows + offset
        for columns, rows in (np.nonzero(steps == 1), np.nonzero(steps == -1))
    )
    # Runs that touch, from the bottom of a column to the top of the next, are one.
    touches = starts[1:] == ends[:-1]
    starts = starts[np.r_[True, ~touches]] if starts.size else starts
    ends = ends[np.r_[~touches, True]] if ends.size else ends
    borders = np.r_[0, np.stack([starts, ends], 1).ravel(), size[0] * size[1]]
    counts = np.diff(borders)
    if not counts[-1]:  # the last pixel is on
        counts = counts[:-1]
    return rle.from_segmentation({"size": size, "counts": counts}, size)
