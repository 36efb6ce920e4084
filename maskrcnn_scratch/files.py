"""Files that appear whole or not at all: neither a kill nor a full disk leaves half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_json(path: str | os.PathLike[str], content: object, indent: int | None = None) -> None:
    """Writes ``content`` as JSON, into a folder that is made where it lacks.

    Raises:
        OSError: as ``write_atomically``.
    """
    path = Path(path)
    text = json.dumps(content, indent=indent).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text))


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
