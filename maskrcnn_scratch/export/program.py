"""The model as a graph of tensors, from which every export starts.

Shapes: see ``structures``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from maskrcnn_scratch.export.unexportable import explain_export_errors
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.roi_heads import MultiScaleRoIAlign
from maskrcnn_scratch.roi_heads.pooler import infer_scales
from maskrcnn_scratch.structures import ImageList, Result
from maskrcnn_scratch.transform import GeneralizedRCNNTransform, resize_boxes

OPSETS = range(18, 22)  # ONNX operator sets: onnxruntime runs RoiAlign of 16, not yet that of 22
MAX_BATCH = 256  # images, if the batch size is dynamic
MAX_SIDE = 8192  # pixels, if sizes are dynamic
# Dynamic sides are at least 3 * 32 pixels: a level that is one location wide has another stride.
MIN_CELLS = 3


@dataclass(frozen=True)
class ExportOptions:
    """Inputs and outputs of an exported model.

    With one image of fixed size, ``images`` is ``[3, H, W]`` and the outputs hold the detections:
    ``boxes`` ``[D, 4]``, ``labels`` ``[D]``, ``scores`` ``[D]`` and ``masks`` ``[D, 1, H, W]``.
    With more images, or dynamic sizes, ``images`` is ``[N, 3, H, W]``, outputs are ``[N, D, ...]``
    with ``D`` the maximum number of detections, and ``num_detections`` ``[N]`` counts the valid
    ones; the rest is padding (zero).

    Args:
        image_size: (height, width) of the images; with ``dynamic``, of typical images.
        batch: number of images, all of the same size.
        dynamic: sizes and number of images may differ from call to call.
        preprocessed: images are normalised, resized and padded by the caller, and a second input
            ``sizes``, int64 ``[N, 2]`` (or ``[2]``), gives (height, width) without the padding.
            Boxes and masks are then in the pixels of the padded images. By default images are RGB
            in 0-1, and the exported model contains the transform.
        raw_masks: ``masks`` inside their boxes, ``[D, 1, M, M]``, to be pasted outside the model.
        opset: ONNX operator set; other formats ignore it. onnxruntime runs RoiAlign up to that of
            21; DeformConv needs 19.
        class_names: by label, from 1; for the metadata of the file.
    """

    image_size: tuple[int, int]
    batch: int = 1
    dynamic: bool = False
    preprocessed: bool = False
    raw_masks: bool = False
    opset: int = 18
    class_names: dict[int, str] | None = None

    def __post_init__(self) -> None:
        if min(*self.image_size, self.batch) < 1:
            raise ValueError(
                f"there are no images of {self.image_size[0]} x {self.image_size[1]} in batches "
                f"of {self.batch}: sides and batch must be at least 1"
            )
        if self.opset not in OPSETS:
            raise ValueError(
                f"opset is {self.opset}; it must be in {OPSETS.start} to {OPSETS.stop - 1}"
            )

    @property
    def batched(self) -> bool:
        """Whether inputs and outputs have a leading batch dimension."""
        return self.dynamic or self.batch > 1

    @property
    def input_names(self) -> list[str]:
        return ["images", "sizes"] if self.preprocessed else ["images"]

    def inputs(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """What the exported model is called with for ``images [N, 3, H, W]``, ``sizes [N, 2]``."""
        inputs = (images, sizes) if self.preprocessed else (images,)
        return inputs if self.batched else tuple(value[0] for value in inputs)


class BilinearResize(nn.Module):
    """The resize of the transform, as a module: its node in the graph can be told from others."""

    def forward(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


class Detector(nn.Module):
    """The model as a function of tensors, with the inputs and outputs of ``ExportOptions``."""

    def __init__(self, model: GeneralizedRCNN, options: ExportOptions) -> None:
        super().__init__()
        self.model = model
        self.options = options
        if branches := list(getattr(model.roi_heads, "branches", ())):
            warnings.warn(
                f"outputs of the branches {', '.join(branches)} are lost in the exported model",
                stacklevel=2,
            )
        self.resize = BilinearResize()

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Result:
        options, transform = self.options, self.model.transform
        if not options.batched:
            images = images[None]
            sizes = None if sizes is None else sizes[None]
        if sizes is None:
            batch = make_batch(images, transform, self.resize)
        else:
            batch = ImageList(images, sizes)
        found = self.model.run_batch(batch).detections
        boxes = found.boxes
        if not options.preprocessed:
            original = torch.tensor([images.shape[-2:]], device=images.device)
            boxes = resize_boxes(boxes, batch.sizes, original)
        outputs = {"boxes": boxes, "labels": found.labels, "scores": found.scores}
        if found.masks is not None:
            outputs["masks"] = found.masks  # [N, D, 1, M, M]
        if not options.batched:
            outputs = {name: value[0] for name, value in outputs.items()}
            outputs = first_entries(outputs, found.counts[0])
        if found.masks is not None and not options.raw_masks:
            height, width = images.shape[-2:]
            masks, boxes = outputs["masks"], outputs["boxes"]
            leading = masks.shape[:-3]  # [N, D] or [D]
            pasted = transform.paste(
                masks.reshape(-1, *masks.shape[-3:]), boxes.reshape(-1, 4), (height, width)
            )
            outputs["masks"] = pasted.reshape(*leading, 1, height, width)
        if options.batched:
            outputs["num_detections"] = found.counts
        return outputs


def make_batch(
    images: Tensor, transform: GeneralizedRCNNTransform, resize: BilinearResize
) -> ImageList:
    """The batch that ``transform`` makes of images of one size, ``[N, 3, H, W]`` in 0-1."""
    height, width = transform.resized_size(images.shape[-2], images.shape[-1])
    divisor = transform.size_divisible
    most = max(*(transform.fixed_size or ()), *transform.min_size, transform.max_size)
    cells = math.ceil(most / divisor)  # along the longest possible side
    padded_height = divisor * _known_between(MIN_CELLS, (height + divisor - 1) // divisor, cells)
    padded_width = divisor * _known_between(MIN_CELLS, (width + divisor - 1) // divisor, cells)
    height, width = _known_between(1, height, most), _known_between(1, width, most)
    images = resize(transform.normalize(images), (height, width))
    below, right = padded_height - height, padded_width - width
    torch._check(below >= 0)
    torch._check(right >= 0)
    images = F.pad(images, (0, right, 0, below)).contiguous(memory_format=torch.channels_last)
    sizes = torch.tensor([[height, width]], device=images.device).expand(images.shape[0], -1)
    return ImageList(images, sizes)


def _known_between(low: int, size: int | torch.SymInt, high: int) -> Any:
    """``size``; in a graph, where it is a formula, a fresh symbol with this range for it.

    The sizes of all feature maps follow from the size of the batch: as formulas of the original
    size they would make exporting ten times slower.
    """
    if isinstance(size, int):
        return size
    symbol = torch.scalar_tensor(size, dtype=torch.int64).item()
    torch._check(symbol >= low)
    torch._check(symbol <= high)
    return symbol


def first_entries(values: Result, count: Tensor) -> Result:
    """The first ``count`` (a tensor without dimensions) of ``[D, ...]`` each."""
    capacity = values["scores"].shape[0]
    number = count.item()
    torch._check(number >= 0)
    torch._check(number <= capacity)
    return {name: value[:number] for name, value in values.items()}


def export_program(model: GeneralizedRCNN, options: ExportOptions) -> ExportedProgram:
    """The detector as a graph, with ``torch.export``.

    Args:
        model: in eval mode.

    Raises:
        ValueError: a model in training mode, or a size that leaves a feature map empty.
        UnexportableError: a component that can't be exported, and the line that can't.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() before the export")
    divisor = model.transform.size_divisible
    if options.preprocessed and any(side % divisor for side in options.image_size):
        raise ValueError(
            f"preprocessed images are padded to multiples of {divisor}, which "
            f"{options.image_size[0]} x {options.image_size[1]} is not"
        )
    detector = Detector(model, options)
    parameter = next(model.parameters())
    # At least two images: torch.export takes a dimension of size 1 for a constant.
    number = max(options.batch, 2) if options.dynamic else options.batch
    height, width = options.image_size
    images = parameter.new_zeros((number, len(model.transform.image_mean), height, width))
    sizes = torch.tensor([[height, width]], device=images.device).repeat(number, 1)
    padded = images
    if not options.preprocessed:
        padded = make_batch(images, model.transform, detector.resize).tensors
    if options.dynamic and min(padded.shape[-2:]) < MIN_CELLS * divisor:
        raise ValueError(
            f"dynamic sizes start at {MIN_CELLS * divisor} pixels, padding included: "
            f"{height} x {width} makes {padded.shape[-2]} x {padded.shape[-1]}"
        )
    with (
        torch.no_grad(),
        fixed_scales(model, padded[:1]),
        explain_export_errors(model),
    ):
        return torch.export.export(
            detector,
            options.inputs(images, sizes),
            dynamic_shapes=dynamic_shapes(options, divisor),
        )


def dynamic_shapes(options: ExportOptions, divisor: int) -> dict[str, Any] | None:
    """The ``dynamic_shapes`` argument of ``torch.export``; None if all sizes are fixed."""
    if not options.dynamic:
        return None
    batch = Dim("batch", min=1, max=MAX_BATCH)
    if not options.preprocessed:
        height, width = (Dim(name, min=1, max=MAX_SIDE) for name in ("height", "width"))
        return {"images": {0: batch, 2: height, 3: width}}
    cells = {"min": MIN_CELLS, "max": MAX_SIDE // divisor}
    height, width = (divisor * Dim(name, **cells) for name in ("rows", "columns"))
    return {"images": {0: batch, 2: height, 3: width}, "sizes": {0: batch}}


@contextmanager
def fixed_scales(model: GeneralizedRCNN, images: Tensor) -> Iterator[None]:
    """Sets the scales of the poolers, which can't be inferred from symbolic sizes.

    Args:
        images: an example, padded, ``[1, 3, H, W]``.

    Raises:
        ValueError: images of this size leave a feature map empty, or the backbone can't take them.
    """
    size = (images.shape[-2], images.shape[-1])
    try:
        features = model.extract_features(images)
    except RuntimeError as error:
        raise ValueError(
            f"the backbone takes no images of {size[0]} x {size[1]}: {error}"
        ) from error
    for name, feature in features.items():
        if 0 in feature.shape:
            raise ValueError(
                f"images of {size[0]} x {size[1]} leave nothing of feature map {name!r} "
                f"({list(feature.shape)}): export for larger ones"
            )
    poolers = [
        module
        for module in model.modules()
        if isinstance(module, MultiScaleRoIAlign) and module.scales is None
    ]
    for pooler in poolers:
        maps: Sequence[Tensor] = [features[name] for name in pooler.featmap_names]
        pooler.scales = infer_scales(maps, [size])
    try:
        yield
    finally:
        for pooler in poolers:
            pooler.scales = None
