"""Writes figures. A picture that cannot be drawn is a warning, never the end of a run."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from maskrcnn_scratch.files import write_atomically
from maskrcnn_scratch.pictures.fonts import font_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
FONT_SIZE = 12  # at which glyphs are looked for


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG or JPEG, by the suffix of ``path``, into a folder that is made.

    Raises:
        OSError: the file cannot be written.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # font_for has warned
        use_fonts_with_glyphs(figure)
        figure.savefig(buffer, dpi=DPI, format=path.suffix[1:], facecolor="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def use_fonts_with_glyphs(figure: Figure) -> None:
    """Gives texts that are not ASCII a font of the system that has their letters."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.text import Text

    figure.draw_without_rendering()  # ticks get their texts
    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            path = getattr(font_for(text.get_text(), FONT_SIZE), "path", None)
            if isinstance(path, str):  # not Pillow's own font
                font = FontProperties(fname=path, size=text.get_fontsize())
                text.set_fontproperties(font)


def try_to_save(path: Path, draw: Callable[[], Figure]) -> bool:
    """Draws and writes a picture; a failure is a warning. Returns whether the file was written."""
    try:
        save_figure(draw(), path)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(f"{path}: the picture could not be drawn ({reason})", stacklevel=2)
        return False
    return True
