"""Image files to tensors. All code that reads images uses this file.

Shapes: H, W height and width in pixels; the 3 channels are always RGB.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from maskrcnn_scratch.data.pixel_limit import current_pixel_limit
from maskrcnn_scratch.plain_values import printable

_UINT16_MAX = 65535
_FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "TGA",
)  # fmt: skip
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def read_image(path: str | PathLike[str], apply_exif: bool = True, page: int = 0) -> Tensor:
    """Reads an image file as float32 RGB [3, H, W] in 0-1. Modes: see :func:`image_to_tensor`.

    Args:
        path: of the file.
        apply_exif: rotates the image by its EXIF orientation, as image viewers do.
        page: which page of a document or frame of an animation, from 0.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is truncated, is not an image, lacks the page or has more pixels than
            ``pixel_limit`` allows. All name the file.
    """
    return read_image_and_header(path, apply_exif, page)[0]


class ImageHeader(NamedTuple):
    """What the header of an image file tells.

    ``size``: (height, width) as stored. ``orientation``: EXIF orientation, 1 (upright) to 8.
    ``pages``: number of pages of a document or frames of an animation, else 1.
    """

    size: tuple[int, int]
    orientation: int
    pages: int

    @property
    def is_turned(self) -> bool:
        """Whether the EXIF orientation rotates or mirrors the image."""
        return self.orientation != 1

    @property
    def swaps_sides(self) -> bool:
        """Whether the EXIF orientation makes the height of the stored image the width."""
        return self.orientation >= 5

    def size_of(self, apply_exif: bool) -> tuple[int, int]:
        """(height, width) of the image that ``read_image`` returns."""
        height, width = self.size
        return (width, height) if apply_exif and self.swaps_sides else (height, width)

    def turn_is_uncertain(self, annotated: tuple[int, int] | None) -> bool:
        """Whether annotations may be for the stored or for the turned image.

        Args:
            annotated: (height, width) in the annotations; None if they give none.
        """
        is_square = self.size[0] == self.size[1]
        return self.is_turned and (annotated is None or is_square or not self.swaps_sides)


def read_image_and_header(
    path: str | PathLike[str], apply_exif: bool = True, page: int = 0
) -> tuple[Tensor, ImageHeader]:
    """The image as :func:`read_image` returns it, and the header of its file."""
    with _open(path) as image:
        pages = _count_pages(image)
        if page:
            image.seek(page)
        image.load()
        # A PNG file may store it after the pixels.
        header = ImageHeader((image.height, image.width), _orientation(image), pages)
        upright = ImageOps.exif_transpose(image) if apply_exif else image
        return image_to_tensor(upright), header


def read_header(path: str | PathLike[str], behind_pixels: bool = True) -> ImageHeader:
    """The header of an image file; raises as :func:`read_image`.

    Args:
        behind_pixels: whether to decode files that may store EXIF after the pixels (PNG).
    """
    with _open(path) as image:
        size = (image.height, image.width)
        return ImageHeader(size, _orientation(image, behind_pixels), _count_pages(image))


def _orientation(image: Image.Image, behind_pixels: bool = True) -> int:
    exif = image.getexif() if behind_pixels else Image.Image.getexif(image)
    value = exif.get(ExifTags.Base.Orientation, 1)
    return int(value) if value in range(2, 9) else 1


def _count_pages(image: Image.Image) -> int:
    # The further images of an MPO file, which is a camera's JPEG, are previews.
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def image_size(path: str | PathLike[str], apply_exif: bool = True) -> tuple[int, int]:
    """(height, width) of the image that :func:`read_image` returns."""
    return read_header(path).size_of(apply_exif)


def image_to_tensor(image: Image.Image) -> Tensor:
    """A PIL image of any mode as float32 RGB [3, H, W] in 0-1.

    Grayscale is repeated to three channels, palettes and CMYK are converted, alpha is dropped.
    8-bit values are divided by 255 (torchvision's ``to_tensor``). 16-bit values are divided by
    65535; Pillow's own conversion would clip them at 255.

    Raises:
        ValueError: an image with float values outside 0-1.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return torch.from_numpy(_deep_grayscale(image)).expand(3, -1, -1).contiguous()
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))  # [H, W, 3] uint8
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)


def _deep_grayscale(image: Image.Image) -> np.ndarray:
    """Modes F, I and I;16* (Pillow's modes for 16-bit files) as float32 [H, W] in 0-1."""
    gray = np.array(image).astype(np.float32)
    if image.mode != "F":
        gray /= _UINT16_MAX
    if gray.size and not (gray.min() >= 0 and gray.max() <= 1):
        raise ValueError(f"mode {image.mode} needs values of 0 to 65535, or 0 to 1 for floats")
    return gray


def check_is_file(path: str | PathLike[str]) -> None:
    """Raises unless there is a file: reading a pipe or a device may never end.

    ``FileNotFoundError`` where there is nothing, else ``ValueError``.
    """
    name = printable(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{name}: no such image file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: cannot be read as an image ({error})") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name}: no image file but a {_KINDS.get(stat.S_IFMT(mode), 'device')}")


@cache
def readable_formats() -> tuple[str, ...]:
    """Formats that this Pillow reads by itself; others have it look for programs to run."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def _open(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """Opens an image. An error of Pillow inside the block is raised again with the file's name."""
    check_is_file(path)
    try:
        with Image.open(path, formats=readable_formats()) as image:
            yield image
    except Image.DecompressionBombError:
        raise ValueError(
            f"{printable(path)}: too many pixels, the limit is {current_pixel_limit():,}; "
            "--max-pixels sets another"
        ) from None
    except Exception as error:  # each format raises errors of its own for damaged files
        raise ValueError(f"{printable(path)}: cannot be read as an image ({error})") from None
