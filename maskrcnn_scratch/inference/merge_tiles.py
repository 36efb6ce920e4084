"""Merging the detections of the tiles of an image.

Two detections of a class from different tiles are the same object if they share more than half of
the smaller one (intersection over smaller area, IoS, as in SAHI). An object that is larger than
the overlap of two tiles is cut in both, and its parts share less. They are the same object if
they agree on what both tiles show.

Overlaps are those of masks where both detections have one, else those of boxes. Detections of one
tile are never merged with each other: the model's own NMS has separated them.

Shapes: see ``structures``. Coordinates are in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.roi_heads.branches import warn_of_lost_outputs

Rect: TypeAlias = tuple[int, int, int, int]  # x1, y1, x2, y2

_SAME = 0.5  # IoS, or IoU of what both tiles show, above which detections are one object
_MARGIN = 0.02  # share of a tile's side within which a box touches its border


@dataclass
class Piece:
    """The detections of one tile.

    Attributes:
        rect: the tile.
        size: (H, W) of the image.
        result: ``boxes [D, 4]``, ``labels [D]``, ``scores [D]`` on the CPU and, with a mask
            branch, ``masks``, a list of D RLEs of the image.
    """

    rect: Rect
    size: tuple[int, int]
    result: dict[str, Any]


@dataclass(eq=False)
class _Object:
    """A detection, or several that were merged.

    Attributes:
        tiles: number of the tile of each detection.
        rects: those tiles.
        is_cut: it reaches a border of its tile that is inside the image.
    """

    box: np.ndarray  # [4]
    label: int
    score: float
    mask: rle.Rle | None
    is_cut: bool
    tiles: set[int]
    rects: list[Rect]
    area: float = field(init=False)

    def __post_init__(self) -> None:
        self.area = float(rle.area(self.mask)) if self.mask is not None else 0.0
        if self.area == 0:  # boxes decide where a mask is empty
            self.mask = None
            self.area = float(np.prod(self.box[2:] - self.box[:2]))


def merge_pieces(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The objects of all tiles, best first.

    Parts of an object that several tiles cut become one detection: the union of their masks, the
    box around their boxes, the best of their scores. Then, class by class, greedily: a detection
    that is the same object as one before it is dropped, and its score is kept if it is better. The
    order is by score, detections that are cut after all others.

    Returns:
        ``boxes [D, 4]``, ``labels [D]``, ``scores [D]`` and, if every piece has them, ``masks``.
        Outputs of further branches are lost, and a warning names them.
    """
    by_label: dict[int, list[_Object]] = {}
    for tile, piece in enumerate(pieces):
        for detection in _objects(piece, tile):
            by_label.setdefault(detection.label, []).append(detection)
    merged: list[_Object] = []
    for found in by_label.values():
        whole = [detection for detection in found if not detection.is_cut]
        parts = [detection for detection in found if detection.is_cut]
        whole.sort(key=lambda detection: -detection.score)
        joined = sorted(_join_parts(parts), key=lambda detection: -detection.score)
        merged += _suppress([*whole, *joined])
    merged.sort(key=lambda kept: -kept.score)

    first = pieces[0].result
    warn_of_lost_outputs(first, "merged tiles have")
    boxes = [torch.from_numpy(kept.box) for kept in merged]
    result: dict[str, Any] = {
        "boxes": torch.stack(boxes).to(first["boxes"].dtype) if boxes else first["boxes"][:0],
        "labels": torch.tensor([kept.label for kept in merged], dtype=torch.int64),
        "scores": torch.tensor([kept.score for kept in merged], dtype=first["scores"].dtype),
    }
    if "masks" in first:
        height, width = size = pieces[0].size
        empty = rle.from_segmentation({"size": size, "counts": [height * width]}, size)
        result["masks"] = [empty if kept.mask is None else kept.mask for kept in merged]
    return result


def _objects(piece: Piece, tile: int) -> Iterator[_Object]:
    result, (x1, y1, x2, y2), (height, width) = piece.result, piece.rect, piece.size
    boxes = result["boxes"].double().numpy(force=True)
    # Distance of each side of a box from that of the tile, inwards.
    near = np.abs(boxes - np.array(piece.rect)) <= max(2, _MARGIN * max(x2 - x1, y2 - y1))
    inside = np.array([x1 > 0, y1 > 0, x2 < width, y2 < height])
    cut = (near & inside).any(axis=1)
    masks = result.get("masks", [None] * len(boxes))
    for i, (label, score) in enumerate(
        zip(result["labels"].tolist(), result["scores"].tolist(), strict=True)
    ):
        yield _Object(boxes[i], label, score, masks[i], bool(cut[i]), {tile}, [piece.rect])


def _join_parts(parts: Sequence[_Object]) -> Iterator[_Object]:
    """Detections that tiles cut, with those of the same object as one."""
    groups = list(range(len(parts)))  # union-find

    def root(i: int) -> int:
        while groups[i] != i:
            i = groups[i] = groups[groups[i]]
        return i

    boxes = np.array([part.box for part in parts]).reshape(-1, 4)
    for i, part in enumerate(parts):
        for j in np.flatnonzero(_intersections(part.box, boxes[:i])).tolist():
            if part.tiles != parts[j].tiles and _agree(part, parts[j]):
                groups[root(i)] = root(j)
    members: dict[int, list[_Object]] = {}
    for i, part in enumerate(parts):
        members.setdefault(root(i), []).append(part)
    for group in members.values():
        yield group[0] if len(group) == 1 else _union(group)


def _union(parts: Sequence[_Object]) -> _Object:
    corners = np.array([part.box for part in parts])
    masks = [part.mask for part in parts if part.mask is not None]
    return _Object(
        np.r_[corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)],
        parts[0].label,
        max(part.score for part in parts),
        rle.merge(masks) if masks else None,
        True,
        set().union(*(part.tiles for part in parts)),
        [rect for part in parts for rect in part.rects],
    )


def _suppress(candidates: Sequence[_Object]) -> list[_Object]:
    """Those that are not the same object as one before them; scores of the kept may rise."""
    kept: list[_Object] = []
    boxes = np.zeros((len(candidates), 4))
    for candidate in candidates:
        for j in np.flatnonzero(_intersections(candidate.box, boxes[: len(kept)])):
            other = kept[j]
            if candidate.tiles.isdisjoint(other.tiles):
                shared = _shared(candidate, other)
                if shared > _SAME * min(candidate.area, other.area):
                    other.score = max(other.score, candidate.score)
                    break
        else:
            boxes[len(kept)] = candidate.box
            kept.append(candidate)
    return kept


def _agree(a: _Object, b: _Object) -> bool:
    """Whether two cut detections are alike where both of their tiles are."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.rects[0], b.rects[0]
    region = np.array([max(ax1, bx1), max(ay1, by1), min(ax2, bx2), min(ay2, by2)])
    if (region[2:] <= region[:2]).any():
        return False
    shared = _shared(a, b)
    return shared > _SAME * (_area_inside(a, region) + _area_inside(b, region) - shared)


def _shared(a: _Object, b: _Object) -> float:
    """Area of the intersection of the masks, or of the boxes if one has no mask."""
    if a.mask is None or b.mask is None:
        return float(_intersections(a.box, b.box[None])[0])
    return float(rle.area(rle.merge([a.mask, b.mask], intersect=True)))


def _area_inside(detection: _Object, region: np.ndarray) -> float:
    if detection.mask is None:
        return float(_intersections(detection.box, region[None])[0])
    x1, y1, x2, y2 = region.tolist()
    height, width = detection.mask["size"]
    rectangle = rle.from_polygons([[x1, y1, x2, y1, x2, y2, x1, y2]], (height, width))
    return float(rle.area(rle.merge([detection.mask, rectangle], intersect=True)))


def _intersections(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that a box [4] shares with each of the others [D, 4]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return sides.clip(min=0).prod(axis=1)
