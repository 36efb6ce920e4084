"""PNG masks: one file per image with a number per object (PennFudan), or one file per object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn_scratch.data.formats.collect import Collected, image_files

IMAGE_FOLDERS = ("PNGImages", "images", "Images", "JPEGImages", "img")
MASK_FOLDERS = ("PedMasks", "masks", "Masks", "mask", "instances")
SUFFIXES = ("", "_mask", "_masks", "_instance", "_instances")
CATEGORY = "object"


def pairs_of_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and masks, where a data set has one of each."""
    for images in IMAGE_FOLDERS:
        for masks in MASK_FOLDERS:
            if (folder / images).is_dir() and (folder / masks).is_dir():
                return folder / images, folder / masks
    return None


def read_numbered(folder: Path, images: Path, masks: Path) -> Collected:
    """Reads masks in which each object has a number of its own and 0 is background.

    Raises:
        ValueError: a mask that does not fit its image, naming it.
    """
    data = Collected(folder, folder)
    for path in image_files(images):
        image = data.add_image(path.relative_to(folder).as_posix())
        stem = path.relative_to(images).with_suffix("")
        candidates = (masks / f"{stem}{suffix}.png" for suffix in SUFFIXES)
        mask_path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if mask_path is None:
            data.skip("images without a mask file")
            continue
        numbers = _numbers(mask_path, (image["height"], image["width"]))
        for value in np.unique(numbers):
            if value != 0:
                data.add_object(image, CATEGORY, mask=numbers == value)
    return data


def read_one_per_object(folder: Path) -> Collected:
    """Reads ``NAME/images/*`` with one mask file per object in ``NAME/masks`` (DSB 2018).

    Raises:
        ValueError: a mask that does not fit its image, naming it.
    """
    data = Collected(folder, folder)
    for sample in sorted(path.parent for path in folder.glob("*/masks")):
        for path in image_files(sample / "images")[:1]:
            image = data.add_image(path.relative_to(folder).as_posix())
            for mask_path in image_files(sample / "masks"):
                mask = _numbers(mask_path, (image["height"], image["width"])) > 0
                data.add_object(image, CATEGORY, mask=mask)
    return data


def _numbers(path: Path, size: tuple[int, int]) -> np.ndarray:
    numbers = np.asarray(Image.open(path))
    if numbers.ndim == 3:  # each colour is an object
        weights = 256 ** np.arange(min(numbers.shape[2], 3))
        numbers = (numbers[..., :3].astype(np.int64) * weights).sum(2)
    if numbers.shape != size:
        raise ValueError(
            f"{path}: {' x '.join(map(str, numbers.shape))} pixels, its image has "
            f"{size[0]} x {size[1]}"
        )
    return numbers
