"""JPEG files decoded on the device of the model: by nvJPEG on a GPU, through torchvision.

Shapes: H, W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike

import torch
from PIL import ExifTags, Image
from torch import Tensor

from maskrcnn_scratch.data.image import check_is_file

SUFFIXES = (".jpg", ".jpeg")

# EXIF orientation -> function that makes pixels [3, H, W] upright.
_TURNS: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda pixels: pixels.flip(2),
    3: lambda pixels: pixels.flip(1, 2),
    4: lambda pixels: pixels.flip(1),
    5: lambda pixels: pixels.mT,
    6: lambda pixels: pixels.rot90(-1, (1, 2)),
    7: lambda pixels: pixels.mT.flip(1, 2),
    8: lambda pixels: pixels.rot90(1, (1, 2)),
}


def read_jpeg(path: str | PathLike[str], device: torch.device | str) -> Tensor:
    """Reads a JPEG file as float32 RGB ``[3, H, W]`` in 0-1 on ``device``.

    As ``data.image.read_image``, but decoders round differently: pixels differ by a few 255ths.

    Raises:
        ImportError: torchvision is not installed.
        FileNotFoundError: the file is missing.
        ValueError: the file is not a complete JPEG. Both name the file.
    """
    try:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file
    except ImportError as error:
        raise ImportError("decoding on the device needs torchvision") from error
    check_is_file(path)
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        pixels = decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB, device=device)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read as a JPEG ({error})") from None
    upright = _TURNS.get(orientation, lambda pixels: pixels)(pixels)
    return upright.contiguous().to(torch.float32).div_(255)
