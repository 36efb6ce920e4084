"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes tensors, numbers, strings, lists and dicts of them.

    Raises:
        OSError: no space or no permission; a checkpoint that was there before is still there.
    """
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def save_json(content: Any, path: Path) -> None:
    """Writes ``content`` as indented JSON; raises an OSError as ``save_checkpoint`` does."""
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=2).encode() + b"\n"))


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


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Lets ``write`` fill a file beside ``path``, which takes its place once it is on the disk."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        part.unlink(missing_ok=True)
        kept = "; the file that was there is intact" if path.exists() else ""
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise OSError(f"{path}: could not be written ({reason}){kept}") from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
