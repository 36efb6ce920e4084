"""Writes figures. A picture that cannot be drawn is a warning, never the end of a run."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from maskrcnn_scratch.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG or JPEG, by the suffix of ``path``, into a folder that is made.

    Raises:
        OSError: the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format=path.suffix[1:], facecolor="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def try_to_save(path: Path, draw: Callable[[], Figure]) -> bool:
    """Draws and writes a picture; a failure is a warning. Returns whether the file was written."""
    try:
        save_figure(draw(), path)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(f"{path}: the picture could not be drawn ({reason})", stacklevel=2)
        return False
    return True
