"""From images of any size to one normalised, resized, padded batch; and from detections back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from maskrcnn_scratch.ops import paste_masks
from maskrcnn_scratch.structures import Detections, ImageList, Result, Target


class GeneralizedRCNNTransform(nn.Module):
    """Normalises, resizes and batches images; brings boxes and masks back to the original size.

    Args:
        min_size: the shorter side is resized to this many pixels. Of a sequence, training draws one
            size an image and inference takes the last.
        max_size: unless the longer side would then be longer than this.
        image_mean, image_std: of each channel, for pixels in 0-1.
        size_divisible: the batch is padded with zeros to a multiple of this.
        fixed_size: (width, height) that each image is resized to instead.
        paste: puts mask probabilities into the image, as ``ops.paste_masks``.
        _skip_resize: leaves images and targets as they are in training (they come resized).

    Raises:
        ValueError: image_mean and image_std of different lengths, or no min_size.
    """

    def __init__(
        self,
        min_size: int | Sequence[int],
        max_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        size_divisible: int = 32,
        fixed_size: tuple[int, int] | None = None,
        *,
        paste: Callable[[Tensor, Tensor, tuple[int, int]], Tensor] = paste_masks,
        _skip_resize: bool = False,
    ) -> None:
        super().__init__()
        if len(image_mean) != len(image_std):
            raise ValueError(
                f"image_mean is for {len(image_mean)} channels, image_std for {len(image_std)}"
            )
        self.min_size = (min_size,) if isinstance(min_size, int) else tuple(min_size)
        if not self.min_size:
            raise ValueError("min_size is empty: give at least one size")
        self.max_size = max_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.size_divisible = size_divisible
        self.fixed_size = fixed_size
        self.paste = paste
        self._skip_resize = _skip_resize

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> tuple[ImageList, list[Target] | None]:
        """Makes the batch; ``images`` and ``targets`` themselves are left as they are.

        Args:
            images: ``[C, H, W]`` floats in 0-1 each, sizes may differ.
            targets: one an image; boxes and masks are resized along.

        Raises:
            TypeError: pixels that are not floats.
            ValueError: an image of another shape, device or dtype than asked for, naming its index.
        """
        self.check_images(images)
        sizes = [self.resized_size(*image_size(image)) for image in images]
        resized = [
            resize_image(self.normalize(image), size)
            for image, size in zip(images, sizes, strict=True)
        ]
        if targets is not None:
            targets = [
                resize_target(target, image.shape[-2:], size)
                for target, image, size in zip(targets, images, sizes, strict=True)
            ]
        image_sizes = on_device(sizes, torch.int64, images[0].device)
        return ImageList(self.batch_images(resized), image_sizes), targets

    def check_images(self, images: Sequence[Tensor]) -> None:
        """Raises an error that names the first image the model can't take."""
        if len(images) == 0:
            raise ValueError("images is empty: give at least one [C, H, W] tensor")
        channels = len(self.image_mean)
        for index, image in enumerate(images):
            if not isinstance(image, Tensor) or image.dim() != 3:
                what = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
                raise ValueError(
                    f"images[{index}] is {what}: images is expected to be a list of 3d tensors "
                    "of shape [C, H, W]"
                )
            if not image.is_floating_point():
                raise TypeError(
                    f"images[{index}] is of {image.dtype}: pixels must be of floating type, "
                    "in the range 0-1"
                )
            if image.shape[0] != channels or 0 in image.shape:
                raise ValueError(
                    f"images[{index}] has shape {list(image.shape)}: expected {channels} channels "
                    "(the length of image_mean) and sides of at least one pixel"
                )
            if image.device != images[0].device or image.dtype != images[0].dtype:
                raise ValueError(
                    f"images[{index}] is {image.dtype} on {image.device}, images[0] is "
                    f"{images[0].dtype} on {images[0].device}: a batch has one dtype and device"
                )

    def normalize(self, image: Tensor) -> Tensor:
        """``(image - mean) / std`` for each channel of ``[C, H, W]``."""
        mean = on_device(self.image_mean, image.dtype, image.device)
        std = on_device(self.image_std, image.dtype, image.device)
        return (image - mean[:, None, None]).div_(std[:, None, None])  # one copy, not two

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size gets; draws ``min_size`` in training."""
        if self.training and self._skip_resize:
            return height, width
        min_size = self._draw_min_size() if self.training else self.min_size[-1]
        if self.fixed_size is not None:
            return self.fixed_size[1], self.fixed_size[0]
        # In an exported graph sizes are symbols: sym_min asks nothing of them, min would.
        shorter, longer = torch.sym_min(height, width), torch.sym_max(height, width)
        scale = torch.sym_min(min_size / shorter, self.max_size / longer)
        sides: list[Any] = [math.trunc(side * scale) for side in (height, width)]
        return torch.sym_max(sides[0], 1), torch.sym_max(sides[1], 1)

    def _draw_min_size(self) -> int:
        # One draw even where there is nothing to choose, from the stream that torchvision uses, so
        # that the same seed goes on to sample the same anchors and proposals.
        index = int(torch.empty(1).uniform_(0.0, float(len(self.min_size))).item())
        return self.min_size[index]

    def batch_images(self, images: Sequence[Tensor]) -> Tensor:
        """Pads ``[C, h, w]`` images into ``[N, C, H, W]``, channels-last.

        The memory format is what makes every convolution after it run channels-last, which saves
        a reordering of the features in each of them.
        """
        divisor = self.size_divisible
        height = math.ceil(max(image.shape[1] for image in images) / divisor) * divisor
        width = math.ceil(max(image.shape[2] for image in images) / divisor) * divisor
        if is_tracing():  # TorchScript loses what is written into a part of a tensor
            padding = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
            return torch.stack([F.pad(i, p) for i, p in zip(images, padding, strict=True)])
        batch = torch.empty(
            (len(images), images[0].shape[0], height, width),
            dtype=images[0].dtype,
            device=images[0].device,
            memory_format=torch.channels_last,
        ).zero_()
        for n, image in enumerate(images):
            batch[n, :, : image.shape[1], : image.shape[2]].copy_(image)
        return batch

    def postprocess(
        self,
        detections: Detections,
        image_sizes: Tensor,
        original_image_sizes: Sequence[tuple[int, int]],
    ) -> list[Result]:
        """One dict an image, in the pixels of the original images.

        Args:
            detections: in the pixels of the resized images.
            image_sizes: (height, width) after the resize, ``[N, 2]``.
            original_image_sizes: (height, width) before it.
        """
        originals = on_device(original_image_sizes, torch.int64, image_sizes.device)  # [N, 2]
        boxes = resize_boxes(detections.boxes, image_sizes, originals)
        # A trace keeps the number of detections free only where it stays a tensor.
        counts = detections.counts
        results = []
        for n, count in enumerate(counts.unbind() if is_tracing() else counts.tolist()):
            result = {
                "boxes": boxes[n, :count],
                "labels": detections.labels[n, :count],
                "scores": detections.scores[n, :count],
            }
            if detections.masks is not None:
                masks = detections.masks[n, :count]  # [D, 1, M, M]
                result["masks"] = self.paste(masks, result["boxes"], original_image_sizes[n])
            results.append(result)
        return results

    def extra_repr(self) -> str:
        return (
            f"min_size={self.min_size}, max_size={self.max_size}, mean={self.image_mean}, "
            f"std={self.image_std}, size_divisible={self.size_divisible}, "
            f"fixed_size={self.fixed_size}"
        )


def image_size(image: Tensor) -> tuple[int, int]:
    """(height, width) of ``[C, H, W]``, as numbers also where TorchScript traces sizes."""
    return int(image.shape[-2]), int(image.shape[-1])


def on_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the host as a tensor; unlike ``torch.tensor(device=...)`` a GPU is not waited for.

    The driver takes the few bytes over before this returns, and copies them in its own time.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``[C, H, W]`` -> ``[C, *size]``, bilinear, half-pixel centres."""
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def resize_target(target: Target, original: Sequence[int], size: tuple[int, int]) -> Target:
    """A copy of ``target`` with its boxes and masks (nearest) brought to ``size``."""
    resized = dict(target)
    resized["boxes"] = resize_boxes(
        target["boxes"][None], torch.tensor([original]), torch.tensor([size])
    )[0]
    if "masks" in target:
        masks = target["masks"][:, None].byte()  # [G, 1, H, W]
        resized["masks"] = F.interpolate(masks, size=size)[:, 0]
    return resized


def resize_boxes(boxes: Tensor, original: Tensor, size: Tensor) -> Tensor:
    """Scales ``boxes [N, K, 4]`` from images of ``original [N, 2]`` to those of ``size [N, 2]``."""
    ratio = size.float() / original.float()  # [N, 2], (height, width)
    ratio = ratio.to(boxes.device, non_blocking=True)
    return boxes * ratio.flip(1).repeat(1, 2)[:, None]  # [N, 1, 4], (w, h, w, h)
