"""The most pixels that an image may have: a small file can hide a huge image.

The limit is Pillow's, and holds for all threads of a process. Data loaders pass it to their
workers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

MAX_PIXELS = 178_956_970  # by default, as in Pillow


@contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
    """Images of up to ``max_pixels`` can be read inside."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        try:
            set_pixel_limit(max_pixels)
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def set_pixel_limit(max_pixels: int | None) -> None:
    """Sets the limit for the rest of the process; None for no limit."""
    # Pillow warns from half of the limit on.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    half = None if max_pixels is None else max_pixels / 2
    Image.MAX_IMAGE_PIXELS = half  # type: ignore[assignment]


def current_pixel_limit() -> int | None:
    """The limit of this process; None if there is none."""
    half = Image.MAX_IMAGE_PIXELS
    return None if half is None else int(2 * half)
