"""What travels between the stages: batches padded to a fixed size, and how much of them is valid.

Shapes, here and in every file of the package:

    N  images of a batch                  G  ground-truth objects of an image
    H, W  height and width in pixels      B  boxes sampled for a loss
    F  channels of a feature map          R  RoIs: boxes of all images, one after another
    L  levels of the feature pyramid      C  classes, background (class 0) included
    H_l, W_l  size of level l's map       S  side of a RoI's pooled features (7 or 14)
    a  anchors per location of a level    M  side of a mask in its box (28)
    A  anchors of an image, all levels    P  proposals of an image, padding included
    K  candidates: boxes that enter NMS   D  detections of an image, padding included
    O  output channels of a convolution   E  values or channels that a head has per RoI

``K'`` is a second number of candidates, ``R_n`` the RoIs of image n, and so for every letter.
Boxes are (x1, y1, x2, y2) in pixels. No stage returns a list whose length depends on what it found.
Each image has a fixed number of entries; the first ``counts[n]`` of image ``n`` are valid and the
rest are padding, which is zero. Images of a batch can then be computed together, a GPU need not
report a number before the next stage starts, and the model can be exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

# Ground truth of one image: "boxes" float [G, 4], "labels" int64 [G] from 1 (0 is background),
# "masks" uint8 [G, H, W]; optionally "has_mask" bool [G], false for objects that have only a box.
Target: TypeAlias = Mapping[str, Tensor]

# Detections of one image in its own pixels: "boxes" [D, 4], "labels" [D], "scores" [D],
# "masks" [D, 1, H, W].
Result: TypeAlias = dict[str, Tensor]

# Label of a box that takes no part in a loss. Objects have labels from 1, background has label 0.
IGNORE_LABEL = -1


@dataclass
class ImageList:
    """Images of different sizes in one zero-padded batch.

    Attributes:
        tensors: ``[N, 3, H, W]``, each image in the top left corner.
        sizes: int64 ``[N, 2]``, (height, width) of each image without its padding.
    """

    tensors: Tensor
    sizes: Tensor

    def __post_init__(self) -> None:
        sizes: Any = self.sizes
        if not isinstance(sizes, Tensor):  # a list of (height, width), as torchvision has it
            self.sizes = torch.tensor(sizes).to(self.tensors.device, non_blocking=True)

    def to(self, device: torch.device | str) -> ImageList:
        """A copy on ``device``."""
        return ImageList(self.tensors.to(device), self.sizes.to(device))

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) that all images of the batch share."""
        return self.tensors.shape[-2], self.tensors.shape[-1]

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """``sizes`` as torchvision has them: numbers on the host (synchronises with a GPU)."""
        return [(height, width) for height, width in self.sizes.tolist()]


@dataclass
class Proposals:
    """Regions of each image that may hold an object, best first.

    Attributes:
        boxes: ``[N, P, 4]`` in the pixels of the resized image.
        scores: objectness in 0-1, ``[N, P]``.
        counts: number of valid proposals per image, int64 ``[N]``.
        anchor_indices: the anchor that each proposal was decoded from, int64 ``[N, P]`` in
            ``[0, A)``.
    """

    boxes: Tensor
    scores: Tensor
    counts: Tensor
    anchor_indices: Tensor

    @property
    def valid(self) -> Tensor:
        """Which entries are proposals and not padding, bool ``[N, P]``."""
        return valid_entries(self.counts, self.scores.shape[1])

    def to_list(self) -> list[Tensor]:
        """Boxes ``[counts[n], 4]`` of each image, as torchvision has them (synchronises)."""
        return unpad(self.boxes, self.counts)


@dataclass
class Detections:
    """Classified boxes of each image, best first.

    Attributes:
        boxes: ``[N, D, 4]`` in the pixels of the resized image.
        labels: int64 ``[N, D]``, from 1.
        scores: softmax probability of the label, ``[N, D]``.
        counts: number of valid detections per image, int64 ``[N]``.
        proposal_indices: the proposal that each detection was decoded from, int64 ``[N, D]`` in
            ``[0, P)``.
        masks: mask probabilities inside the box, ``[N, D, 1, M, M]``; None in a model without a
            mask branch.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    counts: Tensor
    proposal_indices: Tensor
    masks: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """Which entries are detections and not padding, bool ``[N, D]``."""
        return valid_entries(self.counts, self.scores.shape[1])


def valid_entries(counts: Tensor, capacity: int) -> Tensor:
    """Bool ``[N, capacity]``: true for the first ``counts[n]`` entries of image ``n``."""
    return torch.arange(capacity, device=counts.device) < counts[:, None]


def unpad(values: Tensor, counts: Tensor) -> list[Tensor]:
    """The valid entries of ``[N, D, ...]`` per image: ``[counts[n], ...]`` each (synchronises)."""
    return [of_image[:count] for of_image, count in zip(values, counts.tolist(), strict=True)]


def as_image_list(images: Any) -> ImageList:
    """An ``ImageList`` of this package, from one of torchvision or of this package."""
    return images if hasattr(images, "sizes") else ImageList(images.tensors, images.image_sizes)


def gather_entries(values: Tensor, indices: Tensor, valid: Tensor | None = None) -> Tensor:
    """Picks entries image by image: ``[N, K, ...]`` at ``indices [N, D]`` -> ``[N, D, ...]``.

    Entries for which ``valid [N, D]`` is false become padding (zero).
    """
    trailing = [1] * (values.dim() - 2)
    index = indices.reshape(*indices.shape, *trailing).expand(-1, -1, *values.shape[2:])
    chosen = values.gather(1, index)  # [N, D, ...]
    return chosen if valid is None else chosen.where(valid.reshape(*valid.shape, *trailing), 0)


def of_classes(values: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """From ``values [R, C, ...]``, entry ``[rows[i], classes[i]]`` for each i: ``[R', ...]``.

    ``rows`` and ``classes`` are int64 ``[R']``. A class-agnostic predictor has one value for all
    classes, ``[R, 1, ...]``, which is then taken for every class.
    """
    return values[rows, classes if values.shape[1] > 1 else torch.zeros_like(classes)]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half types as float32, others unchanged: bfloat16 has no odd pixel coordinates above 256."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def boxes_to_rois(boxes: Tensor) -> Tensor:
    """``[N, P, 4]`` -> ``[N * P, 5]``: (image index, x1, y1, x2, y2), image by image."""
    index = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    index = index[:, None, None].expand(-1, boxes.shape[1], -1)  # [N, P, 1]
    return torch.cat((index, boxes), dim=2).flatten(0, 1)


def list_to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """A list with boxes ``[R_n, 4]`` of each image -> ``[R, 5]``: (image index, x1, y1, x2, y2).

    Raises:
        ValueError: boxes of another shape, naming the image.
    """
    for n, boxes_in_image in enumerate(boxes):
        if boxes_in_image.dim() != 2 or boxes_in_image.shape[1] != 4:
            raise ValueError(f"boxes[{n}] must be [R, 4], not {list(boxes_in_image.shape)}")
    return torch.cat(
        [
            torch.cat((torch.full_like(boxes_in_image[:, :1], n), boxes_in_image), dim=1)
            for n, boxes_in_image in enumerate(boxes)
        ]
    )


@dataclass
class StageOutputs:
    """Every intermediate result of one inference; what ``GeneralizedRCNN.run_stages`` returns.

    ``detections`` are in the pixels of the resized images, ``results`` in those of the originals.

    Attributes:
        images: the normalised, resized and padded batch.
        features: feature maps by name, ``{"0": [N, F, H/4, W/4], ..., "pool": ...}``.
        anchors: ``[A, 4]``, the same for every image of the batch.
        objectness: logits of the RPN, ``[N, A]``.
        pred_bbox_deltas: box deltas of the RPN, relative to the anchors, ``[N, A, 4]``.
        proposals: the boxes that the RPN keeps.
        class_logits: ``[N, P, C]``.
        box_regression: box deltas for each class, relative to the proposals, ``[N, P, C, 4]``;
            ``[N, P, 1, 4]`` if they are class-agnostic. RoI heads with ``refine`` first move the
            proposals.
        detections: the boxes that the box head keeps, with their masks.
        branch_outputs: outputs of further branches by name, ``[N, D, ...]`` each.
        results: a dict per image, as torchvision returns it; empty before ``postprocess``.
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
    branch_outputs: dict[str, Tensor]
    results: list[Result]
