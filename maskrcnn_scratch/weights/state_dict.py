"""Weights files: what each format holds, read safely, as names and tensors.

The format is told by the file's first bytes, not by its name. No format may run code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn_scratch.files import write_atomically
from maskrcnn_scratch.plain_values import shown
from maskrcnn_scratch.weights.errors import ForbiddenGlobal, WeightsError
from maskrcnn_scratch.weights.pickle_format import read_array_pickle, write_array_pickle
from maskrcnn_scratch.weights.safetensors_format import read_safetensors, write_safetensors
from maskrcnn_scratch.weights.torch_format import is_torch_file, read_torch_file

__all__ = ["read_state_dict", "write_state_dict"]

_PICKLE = b"\x80"

_MODEL_KEYS = ("model", "state_dict", "model_state_dict")  # where checkpoints keep the weights
# DistributedDataParallel's, torch.compile's, and of a LightningModule with the model as ``model``.
_WRAPPERS = re.compile(r"(module\.|_orig_mod\.|model\.)+")


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Takes ``torch.save`` files (.pth, .pt; both formats), safetensors, and detectron2's pickles of
    numpy arrays. A checkpoint that keeps its weights under "model" or "state_dict" is unwrapped,
    and the prefixes that ``DistributedDataParallel``, ``torch.compile`` and Lightning put before
    every key are taken off.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: it is damaged, incomplete, of another type, wants to run code (nothing is
            run), or holds something other than tensors.
    """
    file = Path(path)
    if not file.is_file():
        kind = "is a folder, not a weights file" if file.is_dir() else "no such weights file"
        raise FileNotFoundError(f"{file}: {kind}")
    try:
        content = _read(file)
    except WeightsError as error:
        raise error if str(file) in str(error) else WeightsError(f"{file}: {error}") from None
    except ForbiddenGlobal as error:
        raise _refusal(file, str(error)) from None
    except Exception as error:  # each format fails in its own ways on bytes that are not it
        raise WeightsError(
            f"{file}: damaged or incomplete ({file.stat().st_size} bytes): {_first_sentence(error)}"
        ) from error
    return _tensors(content, file)


def write_state_dict(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Writes the tensors in the format that the name ends in: .pth, .pt, .safetensors or .pkl.

    The file appears whole or not at all. A .pkl is a detectron2 model-zoo pickle.

    Raises:
        WeightsError: another ending.
        OSError: the file cannot be written, or has no such type of numbers.
    """
    file = Path(path)
    writers: dict[str, Callable[[dict[str, Tensor], IO[bytes]], None]] = {
        ".pth": torch.save,
        ".pt": torch.save,
        ".safetensors": write_safetensors,
        ".pkl": write_array_pickle,
    }
    if file.suffix not in writers:
        raise WeightsError(f"{file}: the name must end in one of {', '.join(writers)}")
    write_atomically(file, lambda stream: writers[file.suffix](dict(tensors), stream))


def _read(file: Path) -> Any:
    if is_torch_file(file):
        return read_torch_file(file)
    with file.open("rb") as stream:
        head = stream.read(16)
    if head[5:9] == b"\0\0\0{":  # the length of a header below a terabyte, and the header
        return read_safetensors(file)
    if head.startswith(_PICKLE):
        return read_array_pickle(file)
    raise WeightsError(
        f"{file}: not a weights file (.pth, .safetensors or detectron2 .pkl): it begins {head!r}"
    )


def _refusal(file: Path, wanted: str) -> WeightsError:
    return WeightsError(
        f"{file}: refused, nothing of it was run: besides tensors it asks for {shown(wanted)}; "
        "if you trust it, load it where it was made and save its state_dict() alone"
    )


def _tensors(content: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        nested = (content[key] for key in _MODEL_KEYS if isinstance(content.get(key), Mapping))
        content = next(nested, content)
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{file}: expected names and tensors, found {type(content).__name__}")
    tensors = {}
    for key, value in content.items():
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        if isinstance(value, Tensor):
            _check_tensor(shown(repr(key)), value, file)
        if not isinstance(key, str) or not isinstance(value, Tensor):
            name = repr(key) if type(key) in (str, int) else f"the key {type(key).__name__}"
            raise WeightsError(
                f"{file}: expected tensors, {shown(name)} is a {type(value).__name__}"
            )
        tensors[key] = value
    if all(map(_WRAPPERS.match, tensors)):
        tensors = {_WRAPPERS.sub("", key, count=1): value for key, value in tensors.items()}
    return tensors


def _check_tensor(name: str, tensor: Tensor, file: Path) -> None:
    """Raises a WeightsError for tensors that are no plain numbers, or more than the file has."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.is_complex():
        raise WeightsError(f"{file}: {name} is no plain tensor of numbers")
    if tensor.numel() * tensor.itemsize > file.stat().st_size:
        raise WeightsError(f"{file}: {name} has more values than the file")


def _first_sentence(error: Exception) -> str:
    return shown(re.split(r"\.\s|\n", str(error))[0] or type(error).__name__, 200)
