"""Runs a model on files, PIL images, arrays or tensors.

Shapes: see ``structures``; ``[3, H, W]`` has as many channels as the model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import compress
from os import PathLike
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from maskrcnn_scratch.data.image import image_to_tensor, read_image
from maskrcnn_scratch.data.jpeg_on_device import SUFFIXES, read_jpeg
from maskrcnn_scratch.evaluation.same_padding import group_by_padding
from maskrcnn_scratch.inference.out_of_memory import naming_stage
from maskrcnn_scratch.inference.paste_later import can_paste_later, detect_without_pasting, encode
from maskrcnn_scratch.inference.prefetch import map_ahead
from maskrcnn_scratch.structures import Result

ImageLike: TypeAlias = str | PathLike[str] | Image.Image | np.ndarray | Tensor

# Pixels in 0-1 may overshoot a little, as after a bicubic resize; 0-255 and normalised pixels are
# outside of this range.
_PLAUSIBLE_RANGE = (-1.0, 2.0)


@dataclass
class Prediction:
    """The outcome for one image of a stream.

    Attributes:
        image: the model's input, ``[3, H, W]``, on the CPU unless it was decoded on the device;
            None if it could not be read.
        found: the model's result on its device, where masks may be ``MasksInBoxes``; None if there
            was an error.
        error: why there is no result.
        score_threshold: of the predictor.
    """

    image: Tensor | None
    found: Result | None = None
    error: Exception | None = None
    score_threshold: float = 0.0

    def result(self) -> Result:
        """The result on the CPU, as ``Predictor`` returns it; this synchronises with the device.

        Raises:
            Exception: the ``error``.
            torch.OutOfMemoryError: the CPU has no memory for the masks.
        """
        return self._finish(dict)

    def encoded(self) -> dict[str, Any]:
        """As :meth:`result`, with the masks, if any, as a list of RLEs, thresholded at 0.5.

        If the model leaves the pasting to its caller (``paste_later``), no mask of the image's size
        is made.
        """
        return self._finish(encode)

    def _finish(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        found = self.found
        assert found is not None
        return naming_stage(
            lambda: _on_cpu(change(_at_least(self.score_threshold, found))),
            "copying or pasting the masks",
            "raise score_threshold, box_score_thresh, or lower box_detections_per_img",
        )


class Predictor:
    """Runs a detection model on images of any supported kind.

        predictor = Predictor(model, score_threshold=0.5)
        result = predictor("street.jpg")

    A forked process hangs if its parent has computed with several threads: the threads of OpenMP,
    which torch uses, do not exist in the child. Start processes with the "spawn" method of
    ``multiprocessing``, or call ``torch.set_num_threads(1)`` first in the child, as the workers of
    a ``DataLoader`` do.

    Args:
        model: takes a list of ``[3, H, W]`` tensors, gives a list of dicts of tensors, as
            :class:`MaskRCNN` does. It is set to eval mode and, with ``device``, moved.
        device: where the model runs; by default where its parameters are.
        score_threshold: detections with a lower score are dropped, after the model has dropped
            those that do not exceed its ``roi_heads.score_thresh``.
        decode_on_device: decodes JPEG files on the model's device; see ``data.jpeg_on_device``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: str | torch.device | None = None,
        score_threshold: float = 0.0,
        decode_on_device: bool = False,
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold is {score_threshold}; it must be between 0 and 1")
        self.model = model.eval() if device is None else model.eval().to(device)
        self.score_threshold = score_threshold
        self.decode_on_device = decode_on_device

    @overload
    def __call__(self, images: ImageLike) -> Result: ...
    @overload
    def __call__(self, images: list[Any] | tuple[ImageLike, ...]) -> list[Result]: ...
    def __call__(
        self, images: ImageLike | list[Any] | tuple[ImageLike, ...]
    ) -> Result | list[Result]:
        """Detections on the CPU, in pixels of the image after its EXIF rotation.

        Args:
            images: one image, or a list or tuple of images, which form one batch; see
                :func:`to_image_tensor` for the kinds of image. As in torchvision, images of a batch
                are padded to the largest, and the padding changes results; in :meth:`stream` it
                does not.

        Returns:
            ``boxes`` float ``[D, 4]`` xyxy, ``labels`` int64 ``[D]``, ``scores`` ``[D]``, ``masks``
            ``[D, 1, H, W]`` in 0-1, best first. For a list of images, a list with one such dict per
            image; it may be empty.

        Raises:
            FileNotFoundError, TypeError, ValueError: an image that cannot be read, is of another
                kind, or has values out of range; the message names it.
            torch.OutOfMemoryError: with the stage, and how to reduce its memory.
        """
        if not isinstance(images, (list, tuple)):
            return self._predict([images], ["image"])[0]
        return self._predict(images, [f"images[{i}]" for i in range(len(images))])

    def stream(
        self,
        images: Iterable[ImageLike | Callable[[], ImageLike]],
        batch_size: int = 1,
        threads: int = 2,
    ) -> Generator[Prediction]:
        """Runs the model on many images; threads read the next ones in the meantime.

            for file, prediction in zip(files, predictor.stream(files, batch_size=8)):
                result = prediction.result()

        Results stay on the model's device until ``Prediction.result`` is called, best in another
        thread (``prefetch.map_ahead``) so that the copy overlaps with the next batch. At most two
        batches of images are read ahead.

        Args:
            images: any number of images; see :func:`to_image_tensor`. A function without arguments
                that returns an image is called in a reading thread.
            batch_size: largest number of images per batch. Of so many consecutive images, those
                that are padded to the same size form a batch. Results therefore do not depend on
                it, except for rounding (``evaluation.same_padding``).
            threads: number of threads that read images.

        Yields:
            a :class:`Prediction` per image, in order. An image that cannot be read, or that runs
            out of memory, has an ``error``; the others are not affected. If a batch runs out of
            memory, each of its images is tried alone.
        """
        if batch_size < 1 or threads < 1:
            raise ValueError(
                f"batch_size is {batch_size} and threads {threads}; both must be at least 1"
            )
        named = ((image, f"images[{i}]") for i, image in enumerate(images))
        batch: list[Prediction] = []
        with closing(
            map_ahead(lambda pair: self._load(*pair), named, threads, 2 * batch_size)
        ) as read:
            for loading in read:
                try:
                    batch.append(Prediction(loading.result(), None, None, self.score_threshold))
                except Exception as error:
                    batch.append(Prediction(None, None, error))
                if sum(prediction.error is None for prediction in batch) == batch_size:
                    yield from self._fill(batch)
                    batch = []
        yield from self._fill(batch)

    def _fill(self, batch: list[Prediction]) -> list[Prediction]:
        """Runs the model on the images that could be read and sets ``found`` or ``error``."""
        readable = [prediction for prediction in batch if prediction.error is None]
        images = [prediction.image for prediction in readable if prediction.image is not None]
        for group in group_by_padding(self.model, images):
            self._fill_at_once([readable[index] for index in group])
        return batch

    def _fill_at_once(self, readable: list[Prediction]) -> None:
        """Runs the images as one batch or, if that runs out of memory, each alone."""
        try:
            found = self._detect([p.image for p in readable if p.image is not None])
        except torch.OutOfMemoryError as error:
            failure = error
        else:
            for prediction, result in zip(readable, found, strict=True):
                prediction.found = result
            return
        if len(readable) == 1:
            readable[0].error = failure
        else:
            for prediction in readable:
                self._fill_at_once([prediction])

    def _predict(self, images: Sequence[ImageLike], names: Sequence[str]) -> list[Result]:
        tensors = [self._load(*pair) for pair in zip(images, names, strict=True)]
        return [
            Prediction(None, found, None, self.score_threshold).result()
            for found in self._detect(tensors)
        ]

    def _load(self, image: ImageLike | Callable[[], ImageLike], name: str) -> Tensor:
        """The model's input; pinned if it is to be copied to a GPU."""
        if callable(image):
            image = image()
        on_device = self.decode_on_device and isinstance(image, (str, PathLike))
        if on_device and str(image).lower().endswith(SUFFIXES):
            return read_jpeg(str(image), self._parameter().device)
        tensor = to_image_tensor(image, name)
        self._check_pixels(tensor, name)
        on_its_way = self._parameter().is_cuda and not tensor.is_cuda
        return tensor.pin_memory() if on_its_way else tensor

    @torch.inference_mode()
    def _detect(self, images: Sequence[Tensor]) -> list[Result]:
        """The model's results, on its device; masks are pasted when they are asked for."""
        if not images:
            return []
        parameter = self._parameter()
        dtype = getattr(self.model, "image_dtype", None) or parameter.dtype
        run: Callable[[list[Tensor]], list[Result]] = self.model
        if can_paste_later(self.model):
            run = partial(detect_without_pasting, self.model)  # type: ignore[arg-type]
        return naming_stage(
            lambda: run([image.to(parameter.device, dtype, non_blocking=True) for image in images])
        )

    def _parameter(self) -> Tensor:
        return next(self.model.parameters(), torch.empty(0))

    def _check_pixels(self, image: Tensor, name: str) -> None:
        if image.numel() == 0:
            raise ValueError(f"{name} has no pixels: shape {list(image.shape)}")
        mean = getattr(getattr(self.model, "transform", None), "image_mean", [0.5] * len(image))
        if len(image) != len(mean):
            raise ValueError(f"{name} has {len(image)} channels, the model takes {len(mean)}")
        low, high = (float(extreme) for extreme in image.aminmax())
        if not np.isfinite([low, high]).all():
            raise ValueError(f"{name} holds NaN or infinite pixels")
        takes_unit_range = all(0 <= value <= 1 for value in mean)
        if takes_unit_range and not _PLAUSIBLE_RANGE[0] <= low <= high <= _PLAUSIBLE_RANGE[1]:
            raise ValueError(
                f"{name} holds values from {low:.4g} to {high:.4g}; the model takes 0 to 1 and "
                "normalises by itself (divide 8-bit values by 255)"
            )


def _at_least(score_threshold: float, result: Result) -> dict[str, Any]:
    """The detections with at least this score; all of them are the same tensors."""
    keep = (result["scores"] >= score_threshold).cpu()
    if keep.all():  # then masks of the image's size are not copied
        return dict(result)

    def select(value: Any) -> Any:
        if isinstance(value, list):  # masks as RLE
            return list(compress(value, keep.tolist()))
        return value[keep]

    return {key: select(value) for key, value in result.items()}


def _on_cpu(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, list) else value.cpu() for key, value in result.items()}


def to_image_tensor(image: ImageLike, name: str = "image") -> Tensor:
    """Converts an image to a float tensor ``[3, H, W]``, RGB in 0-1.

    Files and PIL images are rotated by their EXIF orientation and converted to RGB from any mode.
    Numpy arrays are uint8 ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` or ``[H, W, 4]`` (alpha is
    dropped). Float tensors ``[3, H, W]`` are returned unchanged, uint8 tensors are divided by 255.

    Raises:
        FileNotFoundError, ValueError: a file that is missing or not an image.
        TypeError, ValueError: an object of another kind; the message names it ``name``.
    """
    if isinstance(image, (str, PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return image_to_tensor(ImageOps.exif_transpose(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TypeError(f"{name} is a numpy array of {image.dtype}; uint8 is needed")
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
            raise ValueError(f"{name} is a numpy array {list(image.shape)}; [H, W, 3] is needed")
        image = torch.from_numpy(image[:, :, :3].copy()).permute(2, 0, 1).expand(3, -1, -1)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"{name} is a {type(image).__name__}; it must be a path, PIL image, array or tensor"
        )
    if image.dim() != 3:
        raise ValueError(f"{name} is a tensor {list(image.shape)}; [C, H, W] is needed")
    if image.dtype == torch.uint8:
        return image / 255
    if not image.is_floating_point():
        raise TypeError(f"{name} is a tensor of {image.dtype}; float (0-1) or uint8 is needed")
    return image
