"""Fonts that have the glyphs of a text.

Pillow's own font has ASCII only. For other texts the system's fonts are tried by name.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

# File names, as Linux, macOS and Windows have them: wide alphabets first, then Chinese, Japanese
# and Korean.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial Unicode.ttf",
    "arial.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf",
    "NotoSansCJKjp-Regular.otf", "DroidSansFallbackFull.ttf", "wqy-zenhei.ttc", "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf", "NotoSansThai-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
)  # fmt: skip
_NO_CHARACTER = "\uffff"  # Unicode guarantees that it is none: every font draws its missing glyph


@cache
def font_for(text: str, size: int) -> Font:
    """A font of this size in pixels with the glyphs of ``text``.

    Warns, once per text, if no font has them all; then the one that lacks fewest is returned.
    """
    own = _own_font(size)
    if text.isascii():
        return own
    best, fewest = own, len(_missing(own, text))
    for name in _SYSTEM_FONTS:
        font = _system_font(name, size)
        lacking = fewest if font is None else len(_missing(font, text))
        if font is not None and lacking < fewest:
            best, fewest = font, lacking
        if not fewest:
            return best
    shown = "".join(sorted(_missing(best, text)))
    warnings.warn(
        f"no font has the glyphs {shown!r} of {text!r}: install one that has them, such as Noto "
        "Sans",
        stacklevel=2,
    )
    return best


@cache
def _own_font(size: int) -> Font:
    return ImageFont.load_default(size)


@cache
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _missing(font: Font, text: str) -> set[str]:
    absent = _pixels(font, _NO_CHARACTER)
    return {char for char in text if not char.isspace() and _pixels(font, char) == absent}


def _pixels(font: Font, char: str) -> bytes | None:
    try:
        return bytes(font.getmask(char))
    except UnicodeEncodeError:  # a bitmap font, which Pillow uses without FreeType
        return None
