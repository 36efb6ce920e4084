"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from maskrcnn_scratch.files import write_atomically


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
        ValueError: it is no checkpoint, or holds objects that could run code.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such checkpoint") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0] or "it is empty"
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise ValueError(f"{path}: not a checkpoint, it holds no 'model'")
    return checkpoint
