"""The files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path, *, hidden: bool = True, strict: bool = True) -> Iterator[Path]:
    """The files in a folder and in all folders in it; links to folders are not followed.

    A folder that is missing has none.

    Args:
        folder: where to begin.
        hidden: also what has a name that begins with a dot.
        strict: raise where a folder cannot be read, rather than do without its files.

    Raises:
        OSError: see ``strict``.
    """
    for parent, folders, names in os.walk(folder, onerror=_raise if strict else None):
        if not hidden:
            folders[:] = [name for name in folders if not name.startswith(".")]
            names = [name for name in names if not name.startswith(".")]
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
