"""Augmentation by torchvision.transforms.v2, seeded item by item.

Legend: N objects, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_scratch.data.loader import Draw, Target

try:
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F
    from torchvision.tv_tensors import BoundingBoxes, Image, Mask, wrap
except ImportError as error:
    raise ImportError(
        "augmentation needs torchvision: pip install maskrcnn_scratch[train]"
    ) from error

Transform = Callable[[Image, Target], tuple[Image, Target]]
ROUNDING = 0.01  # pixels that a box may lie outside and still count as whole


@dataclass(frozen=True)
class Augmentation:
    """Which random changes a training image goes through, in this order."""

    horizontal_flip: bool = True
    """Mirror left and right, half of the time."""
    vertical_flip: bool = False
    """Mirror top and bottom, half of the time."""
    rotate90: bool = False
    """Turn by 0, 90, 180 or 270 degrees."""
    crop: tuple[int, int] | None = None
    """Cut out a square with a side of this many pixels, from smallest to largest."""
    scale_jitter: tuple[float, float] | None = None
    """Resize by a factor in this range, 1 being what fits the square of ``scale_jitter_size``, then
    crop or pad to that square. (0.1, 2.0) is large-scale jitter (Ghiasi et al., Simple Copy-Paste,
    section 4)."""
    scale_jitter_size: int = 1024
    """Side of the square that ``scale_jitter`` makes, in pixels."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue (SSD, section 2.2)."""
    gamma: tuple[float, float] | None = None
    """Raise intensities to a power in this range."""

    def build(self) -> v2.Compose:
        """The transform: (image, target) of tv_tensors in and out."""
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
    """A data set seen through a random transform, for training.

    Indexed by :class:`~maskrcnn_scratch.data.loader.Draw`. What is drawn depends on (seed, epoch,
    image) alone: not on the worker, nor on what was read before. No global random state changes.
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
    """Image [3, H, W] and target through a v2 transform; objects that vanish are left out.

    A box cut by the new border is drawn anew around what is left of its mask. An object vanishes
    when no pixel of its mask is left or a side of its box is under one pixel. ``area`` becomes the
    number of pixels left.
    """
    size = tuple(image.shape[-2:])
    boxes = BoundingBoxes(
        target["boxes"],
        format="XYXY",
        canvas_size=size,
        clamping_mode=None,  # so that cut boxes can be told
    )
    image, target = transform(
        Image(image), {**target, "boxes": boxes, "masks": Mask(target["masks"])}
    )
    boxes, masks = target["boxes"].as_subclass(Tensor), target["masks"].as_subclass(Tensor)
    height, width = image.shape[-2:]
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))  # [N, 4]
    area = masks.count_nonzero((1, 2))  # [N]
    cut = ((boxes - inside).abs() > ROUNDING).any(1) & (area > 0)  # [N]
    boxes = inside.index_put((cut,), boxes_of_masks(masks[cut]))
    keep = (area > 0) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)  # [N]
    target |= {"boxes": boxes, "masks": masks, "area": area.to(torch.float32)}
    per_object = {name for name, value in target.items() if isinstance(value, Tensor)}
    kept = {name: target[name][keep] if name in per_object else target[name] for name in target}
    return image.as_subclass(Tensor), kept


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Tight boxes float32 [N, 4], xyxy half-open, of masks [N, H, W], none of them empty."""
    columns, rows = masks.any(1).to(torch.uint8), masks.any(2).to(torch.uint8)  # [N, W], [N, H]
    low = torch.stack([columns.argmax(1), rows.argmax(1)], 1)  # [N, 2]
    high = torch.stack(
        [
            columns.shape[1] - columns.flip(1).argmax(1),
            rows.shape[1] - rows.flip(1).argmax(1),
        ],
        1,
    )
    return torch.cat([low, high], 1).to(torch.float32)


class RandomRotate90(v2.Transform):
    """Turn by 0, 90, 180 or 270 degrees, exactly: no pixel is interpolated."""

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
    """Cut out a square whose side is drawn from min_side to max_side, or what the image allows."""

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
    """Raise intensities to a power drawn from low to high."""

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
