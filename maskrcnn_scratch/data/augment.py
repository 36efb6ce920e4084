"""Augmentation by torchvision.transforms.v2, with a seed for each item.

Shapes: G objects of one image; H, W its height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_scratch.data.batch import Target
from maskrcnn_scratch.data.loader import Draw

try:
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F
    from torchvision.tv_tensors import BoundingBoxes, Image, Mask, wrap
except ImportError as error:
    raise ImportError(
        "augmentation needs torchvision: pip install 'maskrcnn_scratch[train]'"
    ) from error

Transform = Callable[[Image, Target], tuple[Image, Target]]
ROUNDING = 0.01  # pixels by which a box may exceed the image without being clipped


@dataclass(frozen=True)
class Augmentation:
    """The random transforms of a training image, in the order of their application."""

    horizontal_flip: bool = True
    """Mirror left and right with probability 0.5."""
    vertical_flip: bool = False
    """Mirror top and bottom with probability 0.5."""
    rotate90: bool = False
    """Rotate by 0, 90, 180 or 270 degrees, each with probability 0.25."""
    crop: tuple[int, int] | None = None
    """Crop a random square. Its side is drawn between these two numbers of pixels."""
    scale_jitter: tuple[float, float] | None = None
    """Resize by a factor drawn from this range, then crop or pad to a square of
    --scale-jitter-size. With factor 1 the image just fits the square. (0.1, 2.0) is large-scale
    jitter (Ghiasi et al., Simple Copy-Paste, section 4)."""
    scale_jitter_size: int = 1024
    """Side of the square in pixels, for --scale-jitter."""
    photometric: bool = False
    """Change brightness, contrast, saturation and hue at random (SSD, section 2.2)."""
    gamma: tuple[float, float] | None = None
    """Raise intensities to a power drawn from this range."""

    def build(self) -> v2.Compose:
        """The transform, from (image, target) of tv_tensors to (image, target) of tv_tensors."""
        steps: list[v2.Transform] = []
        if self.horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.vertical_flip:
            steps.append(v2.RandomVerticalFlip())
        if self.rotate90:
            steps.append(RandomRotate90())
        if self.crop:
            steps.append(RandomSquareCrop(*self.crop))
        if self.scale_jitter:
            square = (self.scale_jitter_size, self.scale_jitter_size)
            steps.append(v2.ScaleJitter(square, self.scale_jitter))
            steps.append(v2.RandomCrop(square, pad_if_needed=True))
        if self.photometric:
            steps.append(v2.RandomPhotometricDistort())
        if self.gamma:
            steps.append(RandomGamma(*self.gamma))
        return v2.Compose(steps or [v2.Identity()])


class AugmentedDataset(Dataset[tuple[Tensor, Target]]):
    """A data set with a random transform applied to each item, for training.

    It is indexed by :class:`~maskrcnn_scratch.data.loader.Draw`. The random numbers depend only on
    (seed, epoch, image), not on the worker or on items read before. The global random state does
    not change.
    """

    def __init__(
        self, dataset: Dataset[tuple[Tensor, Target]], transform: Transform, seed: int = 0
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Target]:
        item = self.dataset[draw.image]
        key = np.random.SeedSequence((self.seed, draw.epoch, draw.image))
        with torch.random.fork_rng(devices=()):
            # torch.manual_seed would reseed the GPUs as well.
            torch.default_generator.manual_seed(int(key.generate_state(1, np.uint64)[0]))
            return augment(*item, self.transform)


def augment(image: Tensor, target: Target, transform: Transform) -> tuple[Tensor, Target]:
    """Applies a v2 transform to an image [3, H, W] and its target.

    A box that crosses the new border is replaced by the box around the rest of its mask. An object
    is dropped if its mask has no pixel left, or if a side of its box is shorter than one pixel.
    ``area`` becomes the number of mask pixels. An object without a mask (``has_mask`` false) keeps
    the part of its box inside the image, and its area. A target without objects stays one.

    Raises:
        TypeError: a field with several values per object, such as keypoints, which may be
            coordinates that have to move with the image. One value per object is kept as it is.
    """
    for name, value in target.items():
        if isinstance(value, Tensor) and value.dim() > 1 and name not in ("boxes", "masks"):
            raise TypeError(
                f"the target's {name!r}, {list(value.shape)}, would not move with the image: "
                "augmentation transforms boxes and masks; drop the field or train without it"
            )
    size = tuple(image.shape[-2:])
    boxes = BoundingBoxes(
        target["boxes"],
        format="XYXY",
        canvas_size=size,
        clamping_mode=None,  # boxes that cross the border are found below
    )
    image, target = transform(
        Image(image), {**target, "boxes": boxes, "masks": Mask(target["masks"])}
    )
    boxes, masks = target["boxes"].as_subclass(Tensor), target["masks"].as_subclass(Tensor)
    height, width = image.shape[-2:]
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))  # [G, 4]
    area = masks.count_nonzero((1, 2))  # [G]
    cut = ((boxes - inside).abs() > ROUNDING).any(1) & (area > 0)  # [G]
    boxes = inside.index_put((cut,), boxes_of_masks(masks[cut]))
    with_mask = target.get("has_mask", torch.ones(len(boxes), dtype=torch.bool))  # [G]
    area = area.where(with_mask, (boxes[:, 2:] - boxes[:, :2]).prod(1))
    keep = (area > 0) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)  # [G]
    target |= {"boxes": boxes, "masks": masks, "area": area.to(torch.float32)}
    per_object = {name for name, value in target.items() if isinstance(value, Tensor)}
    kept = {name: target[name][keep] if name in per_object else target[name] for name in target}
    return image.as_subclass(Tensor), kept


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Tight boxes (x1, y1, x2, y2), float32 [G, 4], of masks [G, H, W], none of which is empty.

    x2 and y2 are one past the last pixel of the mask.
    """
    columns, rows = masks.any(1).to(torch.uint8), masks.any(2).to(torch.uint8)  # [G, W], [G, H]
    low = torch.stack([columns.argmax(1), rows.argmax(1)], 1)  # [G, 2]
    high = torch.stack(
        [
            columns.shape[1] - columns.flip(1).argmax(1),
            rows.shape[1] - rows.flip(1).argmax(1),
        ],
        1,
    )
    return torch.cat([low, high], 1).to(torch.float32)


class RandomRotate90(v2.Transform):
    """Rotates by 0, 90, 180 or 270 degrees, without interpolation."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, BoundingBoxes):
            return wrap(torch.rot90(inpt, params["turns"], (-2, -1)).contiguous(), like=inpt)
        boxes, (height, width) = inpt.as_subclass(Tensor), inpt.canvas_size
        for _ in range(params["turns"]):  # counter-clockwise: (x, y) -> (y, width - x)
            x1, y1, x2, y2 = boxes.unbind(-1)
            boxes = torch.stack([y1, width - x2, y2, width - x1], -1)
            height, width = width, height
        return wrap(boxes, like=inpt, canvas_size=(height, width))


class RandomSquareCrop(v2.Transform):
    """Crops a square whose side is drawn from min_side to max_side.

    A side of the crop is never longer than that side of the image.
    """

    def __init__(self, min_side: int, max_side: int) -> None:
        super().__init__()
        if not 1 <= min_side <= max_side:
            raise ValueError(f"crop sides must be 1 <= min <= max, got {min_side}, {max_side}")
        self.min_side = min_side
        self.max_side = max_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        image_height, image_width = F.get_size(flat_inputs[0])
        side = int(torch.randint(self.min_side, self.max_side + 1, ()))
        height, width = min(side, image_height), min(side, image_width)
        top = int(torch.randint(image_height - height + 1, ()))
        left = int(torch.randint(image_width - width + 1, ()))
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class RandomGamma(v2.Transform):
    """Raises intensities to a power drawn from low to high."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 < low <= high:
            raise ValueError(f"gamma must be 0 < low <= high, got {low}, {high}")
        self.low = low
        self.high = high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"gamma": float(torch.empty(()).uniform_(self.low, self.high))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.adjust_gamma, inpt, **params)
