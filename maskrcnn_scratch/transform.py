"""Images of any size to one normalised, resized, padded batch; detections back to each image.

Shapes: see ``structures``; ``[3, H, W]`` has as many channels as ``image_mean`` has values.
"""

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
        min_size: the shorter side is resized to this many pixels. If it is a sequence, training
            draws one size per image and inference uses the last.
        max_size: upper limit of the longer side, in pixels; the shorter side is then smaller.
        image_mean, image_std: per channel, for pixels in 0-1.
        size_divisible: height and width of the batch are padded to a multiple of this.
        fixed_size: (width, height) to which each image is resized instead.
        paste: puts mask probabilities into the image, as ``ops.paste_masks``.
        _skip_resize: no resize in training, as in torchvision.

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
            raise ValueError("min_size is empty: pass at least one size")
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
        """Makes the batch; ``images`` and ``targets`` are not modified.

        Args:
            images: float ``[3, H, W]`` in 0-1 each; sizes may differ.
            targets: one per image; boxes and masks are resized as the image is.

        Returns:
            The batch, and copies of the targets in the pixels of the resized images.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: no images, or a wrong shape, device or dtype, naming the image's index.
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
        """Raises an error that names the first image that the model cannot use."""
        if len(images) == 0:
            raise ValueError("images is empty: pass at least one tensor [C, H, W]")
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
                    f"images[{index}] is of {image.dtype}: pixels must be floating point, "
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
        """``(image - mean) / std`` for each channel of ``[3, H, W]``."""
        mean = on_device(self.image_mean, image.dtype, image.device)
        std = on_device(self.image_std, image.dtype, image.device)
        return (image - mean[:, None, None]).div_(
            std[:, None, None]
        )  # div_: one copy instead of two

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the resize; in training ``min_size`` is drawn."""
        if self.training and self._skip_resize:
            return height, width
        min_size = self._draw_min_size() if self.training else self.min_size[-1]
        if self.fixed_size is not None:
            return self.fixed_size[1], self.fixed_size[0]
        shorter, longer = _smaller(height, width), _larger(height, width)
        scale = _smaller(min_size / shorter, self.max_size / longer)
        return _larger(math.trunc(height * scale), 1), _larger(math.trunc(width * scale), 1)

    def _draw_min_size(self) -> int:
        # As torchvision: one number from the global generator even if there is only one size. The
        # same seed then samples the same anchors and proposals.
        index = int(torch.empty(1).uniform_(0.0, float(len(self.min_size))).item())
        return self.min_size[index]

    def batch_images(self, images: Sequence[Tensor]) -> Tensor:
        """Pads images ``[3, H_n, W_n]`` with zeros into one batch ``[N, 3, H, W]``, channels-last.

        All convolutions then run channels-last, and none has to reorder its input.
        """
        divisor = self.size_divisible
        height = math.ceil(max(image.shape[1] for image in images) / divisor) * divisor
        width = math.ceil(max(image.shape[2] for image in images) / divisor) * divisor
        if is_tracing():  # a TorchScript trace does not record copies into a slice
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

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """``[3, H, W]`` and its target, resized as in ``forward``."""
        size = self.resized_size(*image_size(image))
        if target is not None:
            target = resize_target(target, image.shape[-2:], size)
        return resize_image(image, size), target

    def postprocess(
        self,
        detections: Detections | list[Result],
        image_sizes: Tensor | Sequence[tuple[int, int]],
        original_image_sizes: Sequence[tuple[int, int]],
    ) -> list[Result]:
        """Removes the padding and scales boxes and masks to the original images.

        Args:
            detections: in the pixels of the resized images; or a list of dicts as ``RoIHeads``
                returns it when called as a stage, which is returned unchanged in training mode.
            image_sizes: (height, width) after the resize, ``[N, 2]`` or per image.
            original_image_sizes: (height, width) before the resize, per image.

        Returns:
            A dict per image: ``boxes`` ``[D, 4]``, ``labels`` ``[D]``, ``scores`` ``[D]`` and, with
            a mask branch, ``masks`` ``[D, 1, H, W]`` in 0-1. ``D`` may be 0.
        """
        if not isinstance(detections, Detections):
            return self.postprocess_lists(detections, image_sizes, original_image_sizes)
        assert isinstance(image_sizes, Tensor)
        originals = on_device(original_image_sizes, torch.int64, image_sizes.device)  # [N, 2]
        boxes = resize_boxes(detections.boxes, image_sizes, originals)
        # In a trace, the number of detections stays variable only as a tensor.
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

    def postprocess_lists(
        self,
        results: list[Result],
        image_sizes: Tensor | Sequence[tuple[int, int]],
        original_image_sizes: Sequence[tuple[int, int]],
    ) -> list[Result]:
        """``postprocess`` of a dict per image, in place as in torchvision."""
        if self.training:
            return results
        for result, size, original in zip(results, image_sizes, original_image_sizes, strict=True):
            before, after = torch.as_tensor(size)[None], torch.as_tensor(original)[None]
            result["boxes"] = resize_boxes(result["boxes"][None], before, after)[0]
            if "masks" in result:
                result["masks"] = self.paste(result["masks"], result["boxes"], original)
        return results

    def __repr__(self) -> str:
        sizes = f"min_size={self.min_size}, max_size={self.max_size}, mode='bilinear'"
        if self.fixed_size is not None:
            sizes += f", fixed_size={self.fixed_size}"
        normalize = f"Normalize(mean={self.image_mean}, std={self.image_std})"
        return f"{type(self).__name__}(\n    {normalize}\n    Resize({sizes})\n)"


def _smaller(a: Any, b: Any) -> Any:
    """``min``. In an exported graph sizes are symbols, which ``min`` would compare: fixed results.

    Torch 2.11 does not compile ``sym_min`` of numbers.
    """
    return torch.sym_min(a, b) if _has_symbol(a, b) else min(a, b)


def _larger(a: Any, b: Any) -> Any:
    """``max``, as ``_smaller``."""
    return torch.sym_max(a, b) if _has_symbol(a, b) else max(a, b)


def _has_symbol(*sizes: Any) -> bool:
    return any(isinstance(size, (torch.SymInt, torch.SymFloat)) for size in sizes)


def image_size(image: Tensor) -> tuple[int, int]:
    """(height, width) of ``[3, H, W]``, as numbers also in a TorchScript trace."""
    return int(image.shape[-2]), int(image.shape[-1])


def on_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor on ``device``, without host synchronisation.

    ``torch.tensor(values, device=...)`` would synchronise with a GPU. Here the driver copies the
    few bytes to a buffer of its own before ``to`` returns.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``[3, H, W]`` -> ``[3, *size]``, bilinear, half-pixel centres."""
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def resize_target(target: Target, original: Sequence[int], size: tuple[int, int]) -> Target:
    """A copy of ``target`` with boxes and keypoints scaled and masks resized (nearest) to ``size``.

    Keypoints are ``[G, keypoints, 3]``: x, y and whether they are visible, as in torchvision.
    """
    resized = dict(target)
    resized["boxes"] = resize_boxes(
        target["boxes"][None], torch.tensor([original]), torch.tensor([size])
    )[0]
    if "masks" in target:
        masks = target["masks"][:, None].byte()  # [G, 1, H, W]
        resized["masks"] = F.interpolate(masks, size=size)[:, 0]
    if "keypoints" in target:
        scale = on_device(
            [size[1] / original[1], size[0] / original[0], 1.0],
            torch.float32,
            target["keypoints"].device,
        )
        resized["keypoints"] = target["keypoints"] * scale
    return resized


def resize_boxes(boxes: Tensor, original: Tensor, size: Tensor) -> Tensor:
    """Scales ``boxes [N, D, 4]`` from image sizes ``original [N, 2]`` to ``size [N, 2]``."""
    ratio = size.float() / original.float()  # [N, 2], (height, width)
    ratio = ratio.to(boxes.device, non_blocking=True)
    return boxes * ratio.flip(1).repeat(1, 2)[:, None]  # [N, 1, 4], (w, h, w, h)
