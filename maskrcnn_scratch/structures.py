"""What travels between the stages: padded batches with counts.

Letters: ``N`` images, ``P`` proposal slots an image, ``D`` detection slots an image, ``L`` levels,
``A`` anchors over all levels, ``R = N * P`` RoIs, ``M`` mask side, ``C`` channels or classes.

A stage never returns a list that depends on what it found: image ``n`` has a fixed number of
slots, of which the first ``counts[n]`` are valid and the rest are zeros. So nothing waits for the
device to tell a number, images of a batch are computed together, and the whole exports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

# Ground truth of one image: "boxes" float [G, 4] xyxy, "labels" int64 [G] from 1 (0 is background),
# "masks" uint8 [G, H, W].
Target: TypeAlias = Mapping[str, Tensor]

# What a user gets for one image: "boxes" [D, 4], "labels" [D], "scores" [D], "masks" [D, 1, H, W].
Result: TypeAlias = dict[str, Tensor]


@dataclass
class ImageList:
    """Images of different sizes in one zero-padded batch.

    Attributes:
        tensors: ``[N, C, H, W]``, each image in the top left corner.
        sizes: int64 ``[N, 2]``, (height, width) of each image without its padding.
    """

    tensors: Tensor
    sizes: Tensor

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) that all images of the batch share."""
        return self.tensors.shape[-2], self.tensors.shape[-1]

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """``sizes`` as torchvision has them, on the host (waits for a GPU)."""
        return [(height, width) for height, width in self.sizes.tolist()]


@dataclass
class Proposals:
    """Where the RPN expects objects, best first.

    Attributes:
        boxes: ``[N, P, 4]`` in the pixels of the resized image.
        scores: objectness in 0-1, ``[N, P]``.
        counts: valid slots of each image, int64 ``[N]``.
        anchors: which anchor each proposal grew from, int64 ``[N, P]`` into ``[0, A)``.
    """

    boxes: Tensor
    scores: Tensor
    counts: Tensor
    anchors: Tensor

    def to_list(self) -> list[Tensor]:
        """Boxes ``[counts[n], 4]`` of each image (waits for a GPU)."""
        return [
            boxes[:count] for boxes, count in zip(self.boxes, self.counts.tolist(), strict=True)
        ]


@dataclass
class Detections:
    """Classified boxes, best first.

    Attributes:
        boxes: ``[N, D, 4]`` in the pixels of the resized image.
        labels: int64 ``[N, D]``, from 1.
        scores: softmax of the label, ``[N, D]``.
        counts: valid slots of each image, int64 ``[N]``.
        proposals: which proposal each detection grew from, int64 ``[N, D]`` into ``[0, P)``.
        masks: mask probabilities in the frame of the box, ``[N, D, 1, M, M]``; None in a model
            without a mask branch.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    counts: Tensor
    proposals: Tensor
    masks: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """``[N, D]`` bool: which slots hold a detection."""
        return valid_slots(self.counts, self.scores.shape[1])


def valid_slots(counts: Tensor, capacity: int) -> Tensor:
    """``[N, capacity]`` bool, true in the first ``counts[n]`` slots of image ``n``."""
    return torch.arange(capacity, device=counts.device) < counts[:, None]


def gather_slots(values: Tensor, indices: Tensor, valid: Tensor | None = None) -> Tensor:
    """The values of chosen slots: ``[N, K, ...]`` at ``indices [N, D]`` -> ``[N, D, ...]``.

    Where ``valid [N, D]`` is given and false, the slot is set to zero.
    """
    trailing = [1] * (values.dim() - 2)
    index = indices.reshape(*indices.shape, *trailing).expand(-1, -1, *values.shape[2:])
    chosen = values.gather(1, index)  # [N, D, ...]
    return chosen if valid is None else chosen.where(valid.reshape(*valid.shape, *trailing), 0)


def slots_to_compute(wanted: Tensor) -> Tensor:
    """Indices ``[R]`` of the ``wanted [K]`` slots on the CPU, and of all ``K`` elsewhere.

    On the CPU looking at ``wanted`` is free and saves the work for the others. A GPU would have to
    be waited for, and a graph that is traced or exported needs a fixed number.
    """
    if waiting_is_free(wanted):
        return wanted.nonzero().squeeze(1)
    return torch.arange(wanted.shape[0], device=wanted.device)


def pack_slots(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`slots_to_compute` image by image: of ``wanted [N, K]``, padded to ``K'`` slots.

    Returns:
        slots: int64 ``[N, K']`` into ``[0, K)``, in ascending order.
        wanted: bool ``[N, K']``, whether the slot is one of those wanted.
    """
    if not is_eager_on_cpu(wanted):
        return torch.arange(wanted.shape[1], device=wanted.device).expand_as(wanted), wanted
    counts = wanted.sum(1)
    packed = valid_slots(counts, max(1, int(counts.max())))  # [N, K'], never empty: for gather
    slots = torch.zeros_like(packed, dtype=torch.int64)
    slots[packed] = wanted.nonzero()[:, 1]
    return slots, packed


def waiting_is_free(tensor: Tensor) -> bool:
    """Whether the host may look at values: on the CPU, unless a graph is being made of the code."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def is_eager_on_cpu(tensor: Tensor) -> bool:
    """Whether sizes may also depend on values: a TorchScript trace would keep those that it saw."""
    return waiting_is_free(tensor) and not is_tracing()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half types as float32, others as they are: bfloat16 rounds pixels beyond 256 to twos."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def boxes_to_rois(boxes: Tensor) -> Tensor:
    """``[N, P, 4]`` -> ``[N * P, 5]``: (image index, x1, y1, x2, y2), image by image."""
    index = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    index = index[:, None, None].expand(-1, boxes.shape[1], -1)  # [N, P, 1]
    return torch.cat((index, boxes), dim=2).flatten(0, 1)


def list_to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """``[R_n, 4]`` for each image -> ``[R, 5]``: (image index, x1, y1, x2, y2).

    Raises:
        ValueError: boxes of another shape, naming the image.
    """
    for n, in_image in enumerate(boxes):
        if in_image.dim() != 2 or in_image.shape[1] != 4:
            raise ValueError(f"boxes[{n}] must be [K, 4], not {list(in_image.shape)}")
    return torch.cat(
        [
            torch.cat((in_image.new_full((len(in_image), 1), n), in_image), dim=1)
            for n, in_image in enumerate(boxes)
        ]
    )


@dataclass
class StageOutputs:
    """Every intermediate of one inference, stage by stage; what ``run_stages`` returns.

    ``detections`` are in the pixels of the resized images, ``results`` in those of the originals.

    Attributes:
        images: the normalised, resized and padded batch.
        features: feature maps by name, ``{"0": [N, C, H/4, W/4], ..., "pool": ...}``.
        anchors: ``[A, 4]``, one set for every image of the batch.
        objectness: RPN logits, ``[N, A]``.
        pred_bbox_deltas: RPN offsets from the anchors, ``[N, A, 4]``.
        proposals: what the RPN keeps.
        class_logits: ``[N, P, C]``.
        box_regression: offsets from the proposals for each class, ``[N, P, C, 4]``.
        detections: what the box head keeps, with its masks.
        results: one dict an image, as torchvision's; empty before ``postprocess``.
    """

    images: ImageList
    features: dict[str, Tensor]
    anchors: Tensor
    objectness: Tensor
    pred_bbox_deltas: Tensor
    proposals: Proposals
    class_logits: Tensor
    box_regression: Tensor
    detections: Detections
    results: list[Result]
