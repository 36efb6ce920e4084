"""COCO's run lengths of binary masks (RLE), in numpy.

The mask is read column by column: ``counts[0]`` pixels are off, ``counts[1]`` on, ``counts[2]``
off, and so on. Texts, values and errors are those of the kernels in ``csrc/mask_rle``, to the bit.
Texts may be str or bytes.

Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

MAX_COUNT = 2**32 - 1  # COCO's format has 32 bits

# A character of the text holds five bits of a count; the sixth says that more follow.
BITS, SIGN, MORE, FIRST = 5, 0x10, 0x20, ord("0")
MAX_GROUPS = 7  # 35 bits: the 33 of a signed difference of two counts fit

FINE = 5  # pycocotools draws edges on a grid that is five times finer than the pixels
FARTHEST = 1e6  # pixels: corners that are farther away are taken for damaged data
CROSSINGS_AT_ONCE = 1 << 20


def rle_encode(mask: Tensor) -> str:
    """Text of the mask [H, W], in which non-zero pixels are on."""
    pixels = mask.numpy() != 0
    _check_image(*pixels.shape)
    return _to_text(_counts_of_mask(pixels))


def rle_decode(counts: str | bytes, zeros: Tensor) -> None:
    """Sets the pixels that are on in ``zeros``, uint8 [H, W], to 1."""
    pixels = zeros.numpy()
    runs = _checked_counts(counts, *pixels.shape)
    on = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    pixels |= on.reshape(pixels.shape[::-1]).T


def rle_from_counts(counts: Tensor, height: int, width: int) -> str:
    """Text of the run lengths ``counts``, one-dimensional, int64."""
    runs = counts.numpy()
    _check_image(height, width)
    for length in runs[(runs < 0) | (runs > MAX_COUNT)]:
        raise ValueError(f"RLE holds the run length {length}")
    _check_size(runs, height, width)
    return _to_text(runs)


def rle_from_packed(masks: Tensor, height: int, width: int, num_threads: int) -> list[str]:
    """Texts of the masks int64 [D, W, ceil(H / 64)] that ``paste_masks_packed`` gives."""
    words = masks.numpy()
    _check_image(height, width)
    expected = (width, -(-height // 64))
    if words.ndim != 3 or words.shape[1:] != expected:
        raise ValueError(f"packed masks must be [D, {expected[0]}, {expected[1]}]")
    as_bytes = np.ascontiguousarray(words, "<i8").view(np.uint8)
    bits = np.unpackbits(as_bytes, axis=2, bitorder="little")  # [D, W, words * 64]
    return [_to_text(_counts_of_mask(mask[:, :height].T != 0)) for mask in bits]


def rle_from_polygon(xy: Tensor, height: int, width: int) -> str:
    """Text of the mask that a polygon (x0, y0, x1, y1, ...), float64 in pixels, fills."""
    coordinates = xy.numpy()
    _check_image(height, width)
    if coordinates.ndim != 1 or coordinates.size % 2 or coordinates.size < 6:
        raise ValueError(
            f"a polygon is x0, y0, x1, y1, ... of at least 3 points, got {coordinates.size} numbers"
        )
    for pixel in coordinates[~(np.abs(coordinates) <= FARTHEST)]:
        raise ValueError(f"polygon coordinate {pixel:f} is not finite or more than 1e6 pixels away")
    corners = (FINE * coordinates + 0.5).astype(np.int64).reshape(-1, 2)
    edges = np.stack([corners, np.roll(corners, -1, 0)])  # [end, edge, (x, y)]
    # Filling toggles where an edge crosses the centre line of a pixel column: once per position, as
    # two toggles are none. So memory grows with the image, not with the number of edges.
    toggles = np.empty(0, np.int64)
    step = max(1, CROSSINGS_AT_ONCE // min(width, int(FARTHEST)))
    for first in range(0, len(corners), step):
        some = _crossings(edges[:, first : first + step], height, width)
        toggles, times = np.unique(np.append(toggles, some), return_counts=True)
        toggles = toggles[times % 2 == 1]
    ends = np.append(toggles, height * width)
    return _to_text(_join_runs(ends, np.arange(len(ends)) % 2 == 1))


def rle_merge(counts: Sequence[str | bytes], height: int, width: int, intersect: bool) -> str:
    """Text of the union, or the intersection, of masks of one size."""
    if not counts:
        raise ValueError("nothing to merge")
    merged, *others = (_checked_counts(text, height, width) for text in counts)
    for other in others:
        ends = np.union1d(merged.cumsum(), other.cumsum())
        starts = np.append(0, ends[:-1])
        on = [runs.cumsum().searchsorted(starts, "right") % 2 == 1 for runs in (merged, other)]
        merged = _join_runs(ends, on[0] & on[1] if intersect else on[0] | on[1])
    return _to_text(merged)


def rle_area(counts: str | bytes, height: int, width: int) -> int:
    """Number of pixels that are on."""
    return int(_checked_counts(counts, height, width)[1::2].sum())


def rle_bounding_box(counts: str | bytes, height: int, width: int) -> list[float]:
    """(x, y, width, height) of the pixels that are on; zeros for an empty mask."""
    runs = _checked_counts(counts, height, width)
    ends = runs.cumsum()[1::2]
    starts = ends - runs[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(ends):
        return [0.0, 0.0, 0.0, 0.0]
    first_column, first_row = np.divmod(starts, height)
    last_column, last_row = np.divmod(ends - 1, height)
    whole = (last_column > first_column).any()  # a run over columns touches bottom and top
    left, top = int(first_column.min()), 0 if whole else int(first_row.min())
    right, bottom = int(last_column.max()), height - 1 if whole else int(last_row.max())
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


def rle_paste(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, num_threads: int
) -> list[str]:
    """Texts of the soft masks float32 [D, M, M], pasted into their boxes float32 [D, 4]."""
    _check_image(height, width)
    if not np.float32(threshold) > 0:
        raise ValueError("threshold must be above 0")
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError("masks must be [D, M, M]")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes must be [{len(masks)}, 4]")
    texts = []
    for mask, box in zip(masks.numpy(), boxes.numpy(), strict=True):
        on = np.zeros((height, width), bool)
        with np.errstate(all="ignore"):  # NaN and inf in masks and boxes are allowed
            _paste(mask, box, np.float32(threshold), on)
        texts.append(_to_text(_counts_of_mask(on)))
    return texts


def _check_image(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MAX_COUNT:
        raise ValueError(f"mask size {height} x {width} is empty or too large")


def _check_size(counts: np.ndarray, height: int, width: int) -> None:
    if counts.sum() != height * width:
        raise ValueError(f"RLE covers {counts.sum()} pixels, but its size is {height} x {width}")


def _checked_counts(text: str | bytes, height: int, width: int) -> np.ndarray:
    _check_image(height, width)
    counts = _from_text(text)
    _check_size(counts, height, width)
    return counts


def _from_text(text: str | bytes) -> np.ndarray:
    """Counts of COCO's compressed text. Raises where ``_to_text`` cannot have written it."""
    counts: list[int] = []
    value = shift = 0
    for at, character in enumerate(text.encode() if isinstance(text, str) else text):
        group = character - FIRST
        if not 0 <= group < 2 * MORE or shift == BITS * MAX_GROUPS:
            raise ValueError(f"compressed RLE holds a bad character at {at}")
        value |= (group & (MORE - 1)) << shift
        shift += BITS
        if group & MORE:
            continue
        if group & SIGN:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        if not 0 <= value <= MAX_COUNT:
            raise ValueError(f"compressed RLE holds the run length {value}")
        counts.append(value)
        value = shift = 0
    if shift:
        raise ValueError("compressed RLE ends within a count")
    return np.array(counts, np.int64)


def _to_text(counts: np.ndarray) -> str:
    """COCO's compressed text: from the fourth on, differences from the count two before."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    characters = np.zeros((len(values), MAX_GROUPS), np.uint8)
    written = np.zeros((len(values), MAX_GROUPS), bool)
    more = np.ones(len(values), bool)
    for i in range(MAX_GROUPS):
        group = values & (MORE - 1)
        values >>= BITS
        written[:, i] = more
        more = more & (values != np.where(group & SIGN, -1, 0))
        characters[:, i] = FIRST + (group | np.where(more, MORE, 0))
    return characters[written].tobytes().decode()


def _join_runs(ends: np.ndarray, on: np.ndarray) -> np.ndarray:
    """Counts of runs that end before the positions ``ends``, ascending, each of which is on or off.

    Neighbours that are alike become one run.
    """
    some = ends > np.append(0, ends[:-1])
    ends, on = ends[some], on[some]
    last = np.append(on[1:] != on[:-1], True)
    first_is_on = [0] if on[0] else []
    return np.diff(np.concatenate([[0], first_is_on, ends[last]]).astype(np.int64))


def _counts_of_mask(on: np.ndarray) -> np.ndarray:
    """Counts of the mask bool [H, W]."""
    pixels = on.T.reshape(-1)
    ends = np.append(np.flatnonzero(pixels[1:] != pixels[:-1]) + 1, len(pixels))
    return _join_runs(ends, pixels[ends - 1])


def _crossings(edges: np.ndarray, height: int, width: int) -> np.ndarray:
    """Positions, counted down the columns, where the polygon of some ``edges`` begins or ends.

    pycocotools walks an edge from the end with the lower major coordinate, a cell of the fine grid
    per step, and rounds the minor coordinate at each step. The centre line of pixel column x lies
    between the fine columns 5 x + 2 and 5 x + 3.
    """
    extent = np.abs(edges[1] - edges[0])
    steep = extent[:, 0] < extent[:, 1]
    major = np.where(steep, edges[..., 1], edges[..., 0])
    start, end = np.where((major[0] > major[1])[:, None], edges[::-1], edges)
    left, right = edges[..., 0].min(0), edges[..., 0].max(0)
    first = np.maximum(0, -((2 - left) // FINE))
    count = np.maximum(0, np.minimum(width, (right - 3) // FINE + 1) - first)

    edge = np.repeat(np.arange(len(count)), count)  # of each crossing
    before = np.repeat(count.cumsum() - count, count)
    column = np.arange(len(edge)) - before + first[edge]
    y = np.empty(len(edge), np.int64)
    for is_steep in (False, True):
        chosen = steep[edge] == is_steep
        of, x = edge[chosen], FINE * column[chosen] + 2
        along, across = (1, 0) if is_steep else (0, 1)
        steps = end[of, along] - start[of, along]
        slope = (end[of, across] - start[of, across]) / steps
        walk = _steep_crossing if is_steep else _flat_crossing
        y[chosen] = walk(start[of], steps, slope, x)

    # The centre of the fine cell, as a coordinate of pixels.
    row = np.ceil(np.clip((y + 0.5) / FINE - 0.5, 0, height)).astype(np.int64)
    return column * height + row


def _flat_crossing(
    start: np.ndarray, steps: np.ndarray, slope: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """Upper one of the fine cells beside the line between x and x + 1; a step goes right."""
    step = x - start[:, 0]
    both = [(start[:, 1] + slope * (step + i) + 0.5).astype(np.int64) for i in (0, 1)]
    return np.minimum(*both)


def _steep_crossing(
    start: np.ndarray, steps: np.ndarray, slope: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """The fine row in which the edge goes from x to x + 1, or back; a step goes down."""

    def is_before(step: np.ndarray) -> np.ndarray:
        minor = (start[:, 0] + slope * step + 0.5).astype(np.int64)
        return np.where(slope > 0, minor <= x, minor > x)

    estimate = (x - start[:, 0] + 0.5) / slope
    step = np.clip(estimate, 0, steps - 1).astype(np.int64)
    while (back := (step > 0) & ~is_before(step)).any():
        step -= back
    while (on := (step + 1 < steps) & is_before(step + 1)).any():
        step += on
    return start[:, 1] + step


def _paste(mask: np.ndarray, box: np.ndarray, threshold: np.float32, on: np.ndarray) -> None:
    """Sets the pixels of ``on`` [H, W] that reach the threshold.

    Every operation is in float32 and in the order of ``csrc/paste_masks/paste_columns.h``.
    """
    side = len(mask)
    x = _paste_axis(box[0], box[2], side, on.shape[1])
    y = _paste_axis(box[1], box[3], side, on.shape[0])
    if x is None or y is None:
        return
    (left, right, column, column_low, column_high) = x
    (top, bottom, row, row_low, row_high) = y
    padded = np.pad(mask, ((1, 2), (1, 2)))  # [M + 3, M + 3]
    stretched = row_low[:, None] * padded[row] + row_high[:, None] * padded[row + 1]
    pasted = column_low * stretched[:, column] + column_high * stretched[:, column + 1]
    on[top:bottom, left:right] = pasted >= threshold


def _paste_axis(
    low: np.float32, high: np.float32, side: int, size: int
) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray] | None:
    """The pixels [begin, end) of the image that a box covers, None if there are none.

    Each is interpolated between two pixels of the mask with its border: the index of the lower one,
    its weight, and the weight of the next.
    """
    f32, half = np.float32, np.float32(0.5)
    grow = f32((side + 2) / side) if side else f32(np.inf)
    extent, centre = (high - low) * half * grow, (high + low) * half
    first, last = centre - extent, centre + extent
    if not (abs(first) < 2**61 and abs(last) < 2**61):
        return None
    origin, last_pixel = int(first), int(last)
    begin, end = max(origin, 0), min(last_pixel + 1, size)
    if begin >= end:
        return None
    length = np.int64(max(last_pixel - origin + 1, 1))
    scale = f32(side + 2) / length.astype(f32)
    pixels = np.arange(begin, end, dtype=np.int64)
    position = np.maximum(scale * ((pixels - origin).astype(f32) + half) - half, f32(0))
    index = np.minimum(position.astype(np.int64), side + 1)
    w_high = np.minimum(position - index.astype(f32), f32(1))
    return begin, end, index, f32(1) - w_high, w_high
