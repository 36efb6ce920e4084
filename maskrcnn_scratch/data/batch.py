"""A batch of images and targets that travels from a worker process as one block of memory.

PyTorch sends each tensor of a worker with a file descriptor of its own. A batch has seven tensors
per image, so that large batches exceed the usual limit of 1024 open files. Here all tensors of a
batch are copied into one, which takes one descriptor.

Shapes: H, W height and width of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Target = dict[str, Any]
ALIGNMENT = 64  # bytes


class Batch(NamedTuple):
    """Lists of images [3, H, W] and of their targets, since images of a batch differ in size."""

    images: list[Tensor]
    targets: list[Target]

    def to(self, device: torch.device) -> Batch:
        """A copy on the device. Pinned memory needs no host synchronisation."""

        def move(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        moved = [{name: move(value) for name, value in target.items()} for target in self.targets]
        return Batch([move(image) for image in self.images], moved)

    def __reduce__(self) -> tuple[Any, ...]:
        tensors: list[Tensor] = [*self.images]
        layout: list[dict[str, Any]] = []  # per target, a _Slot instead of each tensor
        for target in self.targets:
            layout.append({})
            for name, value in target.items():
                if isinstance(value, Tensor):
                    layout[-1][name] = _Slot(len(tensors))
                    tensors.append(value)
                else:
                    layout[-1][name] = value
        return _unpack, (*_pack(tensors), len(self.images), layout)


class _Slot(NamedTuple):
    """The position of a tensor in a packed list."""

    position: int


def collate(items: Sequence[tuple[Tensor, Target]]) -> Batch:
    """The items of a batch as a :class:`Batch`."""
    images, targets = zip(*items, strict=True)
    return Batch(list(images), list(targets))


def _pack(tensors: list[Tensor]) -> tuple[Tensor, list[tuple[Any, ...]]]:
    """One uint8 tensor with the bytes of all tensors, and (start, dtype, shape, stride) of each."""
    places, size = [], 0
    for tensor in tensors:
        # The strides that a copy has: tensors without gaps keep theirs, and so their exact results.
        stride = torch.empty_like(tensor, device="meta").stride()
        places.append((size, tensor.dtype, tuple(tensor.shape), stride))
        size += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8)
    for tensor, view in zip(tensors, _views(buffer, places), strict=True):
        view.copy_(tensor)
    return buffer, places


def _views(buffer: Tensor, places: list[tuple[Any, ...]]) -> list[Tensor]:
    views = []
    for start, dtype, shape, stride in places:
        flat = buffer[start : start + torch.Size(shape).numel() * dtype.itemsize].view(dtype)
        views.append(flat.as_strided(shape, stride) if flat.numel() else flat.reshape(shape))
    return views


def _unpack(
    buffer: Tensor, places: list[tuple[Any, ...]], images: int, layout: list[dict[str, Any]]
) -> Batch:
    tensors = _views(buffer, places)
    targets = [
        {name: tensors[v.position] if isinstance(v, _Slot) else v for name, v in target.items()}
        for target in layout
    ]
    return Batch(tensors[:images], targets)
