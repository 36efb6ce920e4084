"""safetensors files, through the library of that name: raw numbers, nothing that can run code.

https://github.com/huggingface/safetensors. The library refuses headers whose tensors overlap, leave
gaps, or do not fill the file exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from maskrcnn_scratch.weights.errors import WeightsError


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors by name, on the CPU, read one after another.

    Raises:
        WeightsError: the library is not installed.
        Exception: of any type, where the header and the bytes do not agree.
    """
    with _library("safetensors").safe_open(file, framework="pt") as content:
        # Copies: what the library gives would change, or crash, with the file.
        return {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118


def write_safetensors(tensors: Mapping[str, Tensor], out: IO[bytes]) -> None:
    """Writes the tensors.

    Raises:
        WeightsError: a type that weights do not have, or the library is not installed.
    """
    plain = {}
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise WeightsError(f"weights files have no type for {name}, {tensor.dtype}")
        # The library refuses tensors that share their memory.
        plain[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    out.write(_library("safetensors.torch").save(plain, metadata={"format": "pt"}))


def _library(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise WeightsError(
            "safetensors files need the safetensors library: pip install safetensors"
        ) from error
