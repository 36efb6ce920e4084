"""Generated data: overlapping coloured circles, squares and triangles on noise.

A small model learns it in minutes on a CPU. It still has to classify objects by their outline,
separate objects that touch, and segment only the visible part of each.

Shapes: G objects of one image; H, W its height and width, which are equal.
"""

from __future__ import annotations

import colorsys
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_scratch.data.batch import Target
from maskrcnn_scratch.data.to_coco import to_coco
from maskrcnn_scratch.files import write_json
from maskrcnn_scratch.ops import rle

CLASSES = ("circle", "square", "triangle")
MAX_OBJECTS = 4
MIN_VISIBLE = 0.4  # fraction of each object that must stay visible
PLACEMENTS = 20  # attempts to place an object before it is skipped
NOISE = 24.0  # standard deviation, in 8-bit levels


class ShapesDataset(Dataset[tuple[Tensor, Target]]):
    """``length`` square images with 1 to 4 objects. Items are as in ``CocoDataset``.

    Item ``index`` depends only on (seed, index, side). Objects lie completely inside the image and
    may hide parts of others. Masks and boxes cover the visible part.

    Raises:
        ValueError: ``length`` is less than 1.
    """

    category_labels = {label: label for label in range(1, len(CLASSES) + 1)}
    class_names = dict(enumerate(CLASSES, 1))
    num_classes = len(CLASSES) + 1

    def __init__(self, length: int, seed: int = 0, side: int = 128) -> None:
        if length < 1:
            raise ValueError(f"a data set needs at least one image, got {length}")
        self.seed = seed
        self.side = side
        self.image_ids = np.arange(1, length + 1)
        self.file_names = np.array([f"{index:05d}.png" for index in range(length)])
        self.sizes = np.full((length, 2), side)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, labels, masks = self._draw(index)
        pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        boxes = [rle.bounding_box(rle.encode(mask)) for mask in masks]  # x, y, width, height
        corners = [(x, y, x + width, y + height) for x, y, width, height in boxes]
        first_id = index * MAX_OBJECTS + 1
        return pixels.to(torch.float32).div_(255), {
            "boxes": torch.tensor(corners, dtype=torch.float32),
            "labels": torch.tensor(labels),
            "masks": torch.from_numpy(masks.astype(np.uint8)),
            "area": torch.from_numpy(masks.sum((1, 2)).astype(np.float32)),
            "iscrowd": torch.zeros(len(labels), dtype=torch.uint8),
            "annotation_ids": torch.arange(first_id, first_id + len(labels)),
            "image_id": int(self.image_ids[index]),
            "file_name": str(self.file_names[index]),
        }

    def _draw(self, index: int) -> tuple[np.ndarray, list[int], np.ndarray]:
        """Image uint8 [H, W, 3], labels and visible masks bool [G, H, W], farthest object first."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        image = np.full((self.side, self.side, 3), rng.uniform(60, 200))
        labels: list[int] = []
        masks = np.zeros((0, self.side, self.side), bool)
        whole = np.zeros(0)  # [G] area of each object, hidden pixels included
        for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
            for _ in range(PLACEMENTS):
                label = int(rng.integers(1, len(CLASSES) + 1))
                shape = _shape(label, rng, self.side)  # [H, W]
                visible = masks & ~shape
                if (visible.sum((1, 2)) >= MIN_VISIBLE * whole).all():
                    labels.append(label)
                    masks = np.concatenate([visible, shape[None]])
                    whole = np.append(whole, shape.sum())
                    hue, value = rng.uniform(), rng.uniform(0.6, 1)
                    image[shape] = 255 * np.array(colorsys.hsv_to_rgb(hue, 0.9, value))
                    break
        image += rng.normal(0, NOISE, image.shape)
        return image.clip(0, 255).astype(np.uint8), labels, masks


def _shape(label: int, rng: np.random.Generator, side: int) -> np.ndarray:
    """Mask bool [H, W] of one object. Its radius is 8 to 22 percent of the side."""
    radius = rng.uniform(0.08, 0.22) * side
    x, y = rng.uniform(radius, side - radius, 2)
    columns = np.arange(side) + 0.5 - x  # [W] pixel centres relative to the object's centre
    rows = (np.arange(side) + 0.5 - y)[:, None]  # [H, 1]
    if CLASSES[label - 1] == "circle":
        return columns**2 + rows**2 <= radius**2
    if CLASSES[label - 1] == "square":
        return np.maximum(abs(columns), abs(rows)) <= radius * 0.85
    return (abs(rows) <= radius) & (abs(columns) <= (rows + radius) / 2)


def write_coco(dataset: ShapesDataset, folder: str | PathLike[str]) -> Path:
    """Writes PNG images and ``instances.json`` into ``folder`` and returns the latter's path.

    ``CocoDataset`` reads the same items back, bit for bit.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(dataset.file_names):
        pixels = (dataset[index][0] * 255).round().to(torch.uint8)  # [3, H, W]
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)
    write_json(folder / "instances.json", to_coco(dataset))
    return folder / "instances.json"
