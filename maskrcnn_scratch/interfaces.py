"""What each component must do to be swapped for another: a ``Protocol`` a component.

Nothing has to inherit from these. Hand any object that fits to ``MaskRCNN(...)``.

Letters: ``N`` images, ``L`` levels, ``a`` anchors a cell, ``A`` anchors in all, ``R`` RoIs,
``C`` classes with the background, ``P`` pooled side, ``M`` mask side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from maskrcnn_scratch.structures import ImageList


class Backbone(Protocol):
    """Images to feature maps."""

    out_channels: int  # of every feature map

    def __call__(self, images: Tensor, /) -> dict[str, Tensor] | Tensor:
        """``[N, 3, H, W]`` -> maps ``[N, out_channels, H_l, W_l]`` by name, finest first.

        A single tensor counts as ``{"0": tensor}``.
        """
        ...


class AnchorGenerator(Protocol):
    """Feature map sizes to reference boxes."""

    def num_anchors_per_location(self) -> list[int]:
        """Anchors a cell at each level."""
        ...

    def __call__(
        self, image_list: ImageList, feature_maps: Sequence[Tensor], /
    ) -> Sequence[Tensor]:
        """Anchors ``[A, 4]`` for each image; all equal, as the images share a padded size."""
        ...


class RPNHead(Protocol):
    """Feature maps to objectness and box offsets."""

    def __call__(self, features: Sequence[Tensor], /) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Logits ``[N, a, H_l, W_l]`` and offsets ``[N, 4 * a, H_l, W_l]`` of each level."""
        ...


class NMS(Protocol):
    """Chooses boxes. Soft or class-agnostic suppression goes here."""

    def __call__(
        self,
        boxes: Tensor,
        scores: Tensor,
        groups: Tensor,
        iou_threshold: float,
        max_out: int,
        num_groups: int,
        /,
    ) -> tuple[Tensor, Tensor]:
        """Indices ``[N, max_out]`` of the kept slots, best first, and their number ``[N]``.

        Args:
            boxes: ``[N, K, 4]``.
            scores: ``[N, K]``; -inf marks a slot that is not to be chosen.
            groups: int64 ``[N, K]`` in ``[0, num_groups)``: levels in the RPN, classes in the box
                head.
        """
        ...


class RoIPooler(Protocol):
    """Feature maps and boxes to features of one size."""

    output_size: tuple[int, int]

    def __call__(
        self,
        features: Mapping[str, Tensor],
        boxes: Tensor | Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
        /,
    ) -> Tensor:
        """``[R, C, P, P]`` for RoIs ``[R, 5]`` (image index, x1, y1, x2, y2) or a list of boxes.

        ``image_shapes`` holds one entry, the padded (height, width) that all images share.
        """
        ...


class BoxHead(Protocol):
    """Pooled features to one vector a RoI."""

    def __call__(self, pooled: Tensor, /) -> Tensor:
        """``[R, channels, P, P]`` -> ``[R, D]``."""
        ...


class BoxPredictor(Protocol):
    """Vectors to classes and boxes."""

    def __call__(self, box_features: Tensor, /) -> tuple[Tensor, Tensor]:
        """``[R, D]`` -> class logits ``[R, C]`` and offsets ``[R, 4 * C]``."""
        ...


class MaskHead(Protocol):
    """Pooled features to features that masks are read from."""

    def __call__(self, pooled: Tensor, /) -> Tensor:
        """``[R, channels, P, P]`` -> ``[R, D, P, P]``."""
        ...


class MaskPredictor(Protocol):
    """Features to one mask a class."""

    def __call__(self, mask_features: Tensor, /) -> Tensor:
        """``[R, D, P, P]`` -> logits ``[R, C, M, M]``.

        One with a second argument ``labels [R]`` is asked in inference for the masks of these
        classes alone, ``[R, M, M]``.
        """
        ...


class Matcher(Protocol):
    """Boxes to the ground truth that each is responsible for."""

    def __call__(self, gt_boxes: Tensor, boxes: Tensor, /) -> Tensor:
        """Index of the matched ground truth for each of ``boxes [B, 4]``, int64 ``[B]``.

        -1 stands for background and -2 for boxes to be ignored.
        """
        ...


class Sampler(Protocol):
    """Which boxes enter the losses."""

    def __call__(
        self, labels: list[Tensor], /, generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Indices of positives and of negatives, one tensor an image, none of them twice.

        ``labels`` holds ``[B]`` for each image: from 1 positive, 0 negative, -1 ignored. A sampler
        that gives a fixed number of indices puts -1 for one that is missing, and may fill up the
        positives with negatives.
        """
        ...
