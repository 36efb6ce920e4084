"""The safetensors file format: a JSON header of names, types, shapes and offsets, then raw bytes.

https://github.com/huggingface/safetensors#format. Nothing in it can run code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from maskrcnn_scratch.weights.errors import WeightsError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors by name, on the CPU.

    Raises:
        ValueError: the header and the bytes do not agree.
    """
    data = np.fromfile(file, np.uint8)
    header_size = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + header_size].tobytes())
    body = data[8 + header_size :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} is of the unknown type {entry['dtype']}")
        dtype, shape, (start, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= start <= end <= len(body) or end - start != size:
            raise ValueError(f"{name} {shape} should be bytes {start} to {end} of {len(body)}")
        tensors[name] = torch.empty(shape, dtype=dtype)
        _bytes_of(tensors[name])[:] = body[start:end]
    return tensors


def write_safetensors(tensors: Mapping[str, Tensor], out: IO[bytes]) -> None:
    """Writes the tensors, wide types first: each lies at a multiple of its item's size.

    Raises:
        WeightsError: a type that the format does not have.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered:
        if tensor.dtype not in _NAMES:
            raise WeightsError(f"safetensors files have no type for {name}, {tensor.dtype}")
        end = offset + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        out.write(_bytes_of(tensor.detach().cpu().contiguous()).tobytes())


def _bytes_of(tensor: Tensor) -> np.ndarray:
    """The bytes of a contiguous tensor, uint8 ``[numel * itemsize]``, sharing its memory."""
    return tensor.view(-1).view(torch.uint8).numpy()
