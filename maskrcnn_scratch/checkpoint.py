"""Training checkpoints: written atomically, read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from maskrcnn_scratch.files import write_atomically


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a dict of tensors, numbers, strings, and lists and dicts of them.

    Raises:
        OSError: no space or no permission; an older checkpoint at ``path`` is kept.
    """
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what ``save_checkpoint`` wrote, tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, or contains objects that could run code.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such checkpoint") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0] or "the file is empty"
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise ValueError(f"{path}: not a checkpoint, it has no 'model'")
    return checkpoint
