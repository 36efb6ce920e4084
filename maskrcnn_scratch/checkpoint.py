"""Training checkpoints: written atomically, read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from maskrcnn_scratch.files import write_atomically
from maskrcnn_scratch.plain_values import shown
from maskrcnn_scratch.weights.errors import ForbiddenGlobal
from maskrcnn_scratch.weights.torch_format import is_torch_file, read_torch_file


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
        ValueError: the file is not a checkpoint, is damaged (every part has a checksum), or
            contains objects that could run code.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        if not is_torch_file(path):
            what = "not a file of torch.save" if path.stat().st_size else "the file is empty"
            raise ValueError(what)
        checkpoint = read_torch_file(path)
    except ForbiddenGlobal as error:
        raise ValueError(f"{path}: not a readable checkpoint (asks for {shown(error)})") from None
    except Exception as error:  # files that are not checkpoints raise many types of errors
        reason = shown(str(error).partition("\n")[0] or type(error).__name__, 200)
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise ValueError(f"{path}: not a checkpoint, it has no 'model'")
    return checkpoint
