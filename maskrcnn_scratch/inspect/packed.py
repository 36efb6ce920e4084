"""Tensors as base64 that the page's JavaScript reads as typed arrays."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TYPES = {
    np.dtype(np.float32): "f32",
    np.dtype(np.int32): "i32",
    np.dtype(np.uint8): "u8",
    np.dtype(np.uint16): "u16",
}


def pack(values: Tensor | np.ndarray) -> dict[str, Any]:
    """Type, shape and little-endian bytes. int64 and bool become int32 and uint8."""
    array = values.numpy(force=True) if isinstance(values, Tensor) else values
    if array.dtype == np.int64:
        array = array.astype(np.int32)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype == np.float32:  # JSON's readers and canvases take no NaN
        array = np.nan_to_num(array, nan=0.0, posinf=3e38, neginf=-3e38)
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    return {
        "type": _TYPES[array.dtype],
        "shape": list(array.shape),
        "data": base64.b64encode(data).decode(),
    }


def pack_probabilities(values: Tensor, levels: int = 65535) -> dict[str, Any]:
    """Values in 0-1 in steps of ``1 / levels``, in two bytes each (one for ``levels=255``)."""
    scaled = (values.float().nan_to_num(0.0).clamp(0, 1) * levels).round()
    array = scaled.to(torch.int32).numpy(force=True)
    return {**pack(array.astype(np.uint8 if levels == 255 else np.uint16)), "levels": levels}
