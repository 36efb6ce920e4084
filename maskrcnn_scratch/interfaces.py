"""What each component must do to be replaced by another one: a ``Protocol`` per component.

Nothing has to inherit from these. Pass any object that fits to ``MaskRCNN(...)``.

Shapes: see ``structures``; here ``E`` values describe one RoI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from maskrcnn_scratch.structures import ImageList


class Backbone(Protocol):
    """Images to feature maps."""

    out_channels: int  # F, the same for every feature map

    def __call__(self, images: Tensor, /) -> dict[str, Tensor] | Tensor:
        """``[N, 3, H, W]`` -> feature maps ``[N, F, H_l, W_l]`` by name, finest first.

        A single tensor is treated as ``{"0": tensor}``.
        """
        ...


class AnchorGenerator(Protocol):
    """Sizes of the feature maps to reference boxes."""

    def num_anchors_per_location(self) -> list[int]:
        """Anchors per location, ``a``, of each level."""
        ...

    def __call__(
        self, image_list: ImageList, feature_maps: Sequence[Tensor], /
    ) -> Sequence[Tensor]:
        """Anchors ``[A, 4]`` per image; the same for all, as they share the padded size."""
        ...


class RPNHead(Protocol):
    """Feature maps to objectness and box deltas."""

    def __call__(self, features: Sequence[Tensor], /) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Objectness logits ``[N, a, H_l, W_l]`` and deltas ``[N, 4 * a, H_l, W_l]`` per level."""
        ...


class NMS(Protocol):
    """Selects boxes. Soft-NMS or class-agnostic NMS can be passed here."""

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
        """Selects up to ``max_out`` boxes per image.

        Args:
            boxes: ``[N, K, 4]``.
            scores: ``[N, K]``; -inf marks padding, which must not be selected.
            groups: int64 ``[N, K]`` in ``[0, num_groups)``: levels in the RPN, classes in the box
                head.
            iou_threshold: IoU above which the lower-scoring box of a group is suppressed.
            max_out: number of entries per image in the result.
            num_groups: number of groups.

        Returns:
            indices: int64 ``[N, max_out]`` in ``[0, K)``, best first; padding may be any of them.
            counts: int64 ``[N]``, the number of selected boxes.
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
        """Pools ``[R, F, S, S]``.

        Args:
            features: ``[N, F, H_l, W_l]`` by name.
            boxes: RoIs ``[R, 5]`` (image index, x1, y1, x2, y2), or a list with boxes ``[R_n, 4]``
                of each image.
            image_shapes: the model passes one entry, the padded size (height, width).
        """
        ...


class BoxHead(Protocol):
    """Pooled features to one vector per RoI."""

    def __call__(self, pooled: Tensor, /) -> Tensor:
        """``[R, F, S, S]`` -> ``[R, E]``."""
        ...


class BoxPredictor(Protocol):
    """Vectors to class logits and box deltas."""

    def __call__(self, box_features: Tensor, /) -> tuple[Tensor, Tensor]:
        """``[R, E]`` -> class logits ``[R, C]`` and box deltas ``[R, C * 4]``."""
        ...


class MaskHead(Protocol):
    """Pooled features to the features from which masks are predicted."""

    def __call__(self, pooled: Tensor, /) -> Tensor:
        """``[R, F, S, S]`` -> ``[R, E, S, S]``."""
        ...


class MaskPredictor(Protocol):
    """Features to one mask per class."""

    def __call__(self, mask_features: Tensor, /) -> Tensor:
        """``[R, E, S, S]`` -> mask logits ``[R, C, M, M]``.

        If it has a second argument ``labels``, inference passes the label of each RoI, ``[R]``, and
        expects only the masks of these classes, ``[R, M, M]``.
        """
        ...


class Matcher(Protocol):
    """Anchors or proposals to the ground truth that they are trained to predict."""

    def __call__(self, gt_boxes: Tensor, boxes: Tensor, /) -> Tensor:
        """Matches ``boxes [A, 4]`` of one image to ``gt_boxes [G, 4]``.

        Returns:
            int64 ``[A]``: the index of the ground truth, ``Matcher.BELOW_LOW_THRESHOLD`` for
            background, ``Matcher.BETWEEN_THRESHOLDS`` for boxes that take no part in the losses.
        """
        ...


class Sampler(Protocol):
    """Selects the boxes that enter the losses."""

    def __call__(
        self, labels: list[Tensor], /, generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Samples positives and negatives.

        Args:
            labels: ``[A]`` per image: 1 or more is positive, 0 negative, ``IGNORE_LABEL`` neither.
            generator: source of random numbers; the global one by default.

        Returns:
            Indices of positives and indices of negatives, int64, a tensor per image, each index at
            most once. A sampler that returns a fixed number of indices writes ``NO_SAMPLE``
            (``targets.sampler``) for missing ones, and may put negatives after the positives in the
            first tensor.
        """
        ...
