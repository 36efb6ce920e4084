"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from maskrcnn_scratch.files import write_atomically
from maskrcnn_scratch.plain_values import shown
from maskrcnn_scratch.weights.errors import ForbiddenGlobal
from maskrcnn_scratch.weights.torch_format import is_torch_file, read_torch_file


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes tensors, numbers, strings, lists and dicts of them.

    Raises:
        OSError: no space or no permission; a checkpoint that was there before is still there.
    """
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what ``save_checkpoint`` wrote, tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, is damaged (every part has a checksum), or holds objects
            that could run code.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        if not is_torch_file(path):
            raise ValueError("no file of torch.save" if path.stat().st_size else "it is empty")
        checkpoint = read_torch_file(path)
    except ForbiddenGlobal as error:
        raise ValueError(f"{path}: not a readable checkpoint (asks for {shown(error)})") from None
    except Exception as error:  # bytes that are no checkpoint fail in their own ways
        reason = shown(str(error).partition("\n")[0] or type(error).__name__, 200)
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise ValueError(f"{path}: not a checkpoint, it holds no 'model'")
    return checkpoint
