"""The operators of ``maskrcnn_scratch.ops`` in terms of standard ONNX operators.

Written once, in what ONNX operator sets 11 to 21 have in common, and used by both of PyTorch's
exporters (``onnx.py``). ``op`` builds the graph of either: ``op.Name(...)`` adds a node, and
numbers, lists and arrays among its inputs become constants.

Shapes: see ``structures``; here ``V`` of the ``K`` candidates of NMS are valid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FLOAT, INT64 = 1, 7  # onnx.TensorProtocol
LOWEST = float(np.finfo(np.float32).min)

Value = Any  # a tensor of the graph under construction; the two exporters have their own class
Size = Any  # such a tensor without dimensions, or an int


class Operators(ABC):
    """Builds nodes of the graph; one implementation per exporter."""

    opset_version: int

    @abstractmethod
    def emit(self, name: str, inputs: Sequence[Value], attributes: dict[str, Any]) -> Any:
        """Adds a node; gives its output, or a sequence of them."""

    @abstractmethod
    def constant(self, array: np.ndarray) -> Value: ...

    @abstractmethod
    def is_value(self, argument: Any) -> bool: ...

    @abstractmethod
    def size(self, value: Value, axis: int) -> int:
        """A size that is fixed when the graph is built."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def add(*inputs: Any, **attributes: Any) -> Any:
            return self.emit(name, [self._as_value(i) for i in inputs], attributes)

        return add

    def _as_value(self, argument: Any) -> Value:
        if self.is_value(argument):
            return argument
        array = np.asarray(argument)
        dtype = {"i": np.int64, "f": np.float32}.get(array.dtype.kind, array.dtype)
        return self.constant(array.astype(dtype))


def multiscale_roi_align(
    op: Operators,
    features: Sequence[Value],
    rois: Value,
    levels: Value,
    scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Value:
    """``RoiAlign`` on each level for the RoIs that belong there, then back into their order."""
    if aligned and op.opset_version < 16:
        raise ValueError(
            f"RoIAlign with aligned=True needs opset_version 16 or newer, not {op.opset_version}"
        )
    attributes: dict[str, Any] = {
        "output_height": pooled_height,
        "output_width": pooled_width,
        "sampling_ratio": max(sampling_ratio, 0),
    }
    if op.opset_version >= 16:  # earlier sets have only one convention
        mode = "half_pixel" if aligned else "output_half_pixel"
        attributes["coordinate_transformation_mode"] = mode
    image = op.Cast(op.Gather(rois, 0, axis=1), to=INT64)  # [R]
    boxes = op.Slice(rois, [1], [5], [1])  # [R, 4]

    pooled, indices = [], []
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        index = op.Transpose(op.NonZero(op.Equal(levels, level)), perm=[1, 0])  # [R_l, 1]
        pooled.append(
            op.RoiAlign(
                feature,
                op.GatherND(boxes, index),
                op.GatherND(image, index),
                spatial_scale=float(scale),
                **attributes,
            )
        )  # [R_l, F, S, S]; R_l RoIs are read from this level
        indices.append(index)
    number = op.Shape(levels)
    order = op.ScatterND(
        op.Expand(0, number),
        op.Concat(*indices, axis=0),
        op.Range(0, op.Reshape(number, np.empty(0, np.int64)), 1),
    )  # [R]: position of each RoI in the concatenation
    return op.Gather(op.Concat(*pooled, axis=0), order, axis=0)


def nms_padded(
    op: Operators,
    boxes: Value,
    scores: Value,
    groups: Value,
    iou_threshold: float,
    max_out: int,
    num_groups: int,
) -> tuple[Value, Value]:
    """``NonMaxSuppression`` with groups as its classes, between two ``TopK``.

    The first drops the candidates whose score is -inf, so that ``num_groups`` times ``V`` scores
    fit in memory: of 90,000 candidates in the box head, a few hundred are valid.
    """
    is_valid = op.Greater(scores, -np.inf)  # [N, K]; false for NaN
    most = op.ReduceMax(op.ReduceSum(op.Cast(is_valid, to=FLOAT), [1], keepdims=0), keepdims=0)
    most = op.Reshape(op.Cast(op.Max(most, 1.0), to=INT64), [1])
    score, candidate = op.TopK(op.Where(is_valid, scores, -np.inf), most, axis=1)  # [N, V] each
    box = op.GatherElements(
        boxes, op.Expand(op.Reshape(candidate, [0, -1, 1]), [1, 1, 4]), axis=1
    )  # [N, V, 4]
    group = op.Reshape(op.GatherElements(groups, candidate, axis=1), [0, 1, -1])  # [N, 1, V]
    in_group = op.Equal(group, np.arange(num_groups)[None, :, None])  # [N, groups, V]
    by_group = op.Where(in_group, op.Reshape(score, [0, 1, -1]), -np.inf)
    selected = op.NonMaxSuppression(box, by_group, [max_out], [float(iou_threshold)], [LOWEST])
    kept = op.Gather(selected, [0, 2], axis=1)  # [number of boxes kept, 2]: image, candidate

    nothing = op.Expand(-np.inf, op.Shape(score))
    score = op.ScatterND(nothing, kept, op.GatherND(score, kept))  # [N, V]
    room = op.Concat(op.Slice(op.Shape(score), [0], [1]), [max_out], axis=0)  # V may be less than D
    best, rank = op.TopK(
        op.Concat(score, op.Expand(-np.inf, room), axis=1), [max_out], axis=1
    )  # [N, D]
    candidate = op.GatherElements(op.Concat(candidate, op.Expand(0, room), axis=1), rank, axis=1)
    is_valid = op.Greater(best, -np.inf)
    count = op.ReduceSum(op.Cast(is_valid, to=INT64), [1], keepdims=0)
    return op.Where(is_valid, candidate, 0), count


def resize_bilinear(op: Operators, images: Value, height: Size, width: Size) -> Value:
    """``F.interpolate`` of ``[N, 3, H, W]`` with half-pixel centres, in PyTorch's order.

    ``Resize`` of onnxruntime computes its coordinates in another order: 1e-5 of a pixel, which
    grows to 1e-4 in the scores of a noisy image.
    """
    for axis, size in ((2, height), (3, width)):
        old = op.Cast(op.Gather(op.Shape(images), axis, axis=0), to=FLOAT)
        new = op.Cast(size, to=FLOAT)
        centres = op.Add(op.Range(0.0, new, 1.0), 0.5)  # [size], pixels of the result
        position = op.Max(op.Sub(op.Mul(op.Div(old, new), centres), 0.5), 0.0)
        last = op.Sub(old, 1.0)
        low = op.Min(op.Floor(position), last)
        high = op.Min(op.Add(low, 1.0), last)
        weight = op.Reshape(op.Sub(position, low), [-1, 1] if axis == 2 else [-1])
        images = op.Add(
            op.Mul(op.Gather(images, op.Cast(low, to=INT64), axis=axis), op.Sub(1.0, weight)),
            op.Mul(op.Gather(images, op.Cast(high, to=INT64), axis=axis), weight),
        )
    return images


def paste_masks(op: Operators, masks: Value, boxes: Value, height: Size, width: Size) -> Value:
    """The two matrix products of ``ops.reference.paste_masks``, step by step the same."""
    side = op.size(masks, 3)
    x1, y1, x2, y2 = (
        op.Reshape(op.Gather(boxes, corner, axis=1), [-1, 1, 1, 1]) for corner in range(4)
    )
    rows = _axis_weights(op, y1, y2, side, height)  # [N, 1, H, M + 2]
    columns = _axis_weights(op, x1, x2, side, width)  # [N, 1, W, M + 2]
    padded = op.Pad(masks, [0, 0, 1, 1, 0, 0, 1, 1])  # [N, 1, M + 2, M + 2]
    return op.MatMul(op.MatMul(rows, padded), op.Transpose(columns, perm=[0, 1, 3, 2]))


def _axis_weights(op: Operators, low: Value, high: Value, side: int, size: Size) -> Value:
    """``[N, 1, 1, 1]`` each -> ``[N, 1, size, M + 2]``."""
    padded_side = side + 2
    half = op.Mul(op.Mul(op.Sub(high, low), 0.5), padded_side / side)
    centre = op.Mul(op.Add(high, low), 0.5)
    first, last = op.Sub(centre, half), op.Add(centre, half)
    fits = op.And(op.Less(op.Abs(first), 2.0**61), op.Less(op.Abs(last), 2.0**61))
    first = op.Cast(op.Where(fits, first, 0.0), to=INT64)
    last = op.Cast(op.Where(fits, last, -1.0), to=INT64)
    length = op.Max(op.Cast(op.Add(op.Sub(last, first), 1), to=FLOAT), 1.0)

    pixels = op.Reshape(op.Range(0, size, 1), [-1, 1])  # [size, 1]
    scale = op.Div(float(padded_side), length)
    offset = op.Add(op.Cast(op.Sub(pixels, first), to=FLOAT), 0.5)  # [N, 1, size, 1]
    position = op.Clip(op.Sub(op.Mul(scale, offset), 0.5), 0.0, float(padded_side - 1))
    mask_pixels = np.arange(padded_side, dtype=np.float32)
    weights = op.Relu(op.Sub(1.0, op.Abs(op.Sub(position, mask_pixels))))
    outside = op.Or(op.Less(pixels, first), op.Greater(pixels, last))
    return op.Where(outside, 0.0, weights)
