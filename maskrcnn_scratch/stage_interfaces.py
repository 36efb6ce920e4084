"""What a whole stage, or a further branch, must do: a ``Protocol`` for each.

Nothing has to inherit from these; a stage with weights is an ``nn.Module``. They are passed to
``MaskRCNN(...)``. Parts of the default stages are in ``interfaces``. Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from maskrcnn_scratch.structures import Detections, ImageList, Proposals, Result, Target


class Branch(Protocol):
    """A further branch of the RoI heads, a module: ``branches={"keypoint": branch}``.

    It may have a method ``postprocess(result, image_size, original_image_size) -> result``. It is
    called per image with the result, whose boxes and masks are in the pixels of the original image,
    and brings the branch's own outputs ``[D, ...]`` there. Sizes are (height, width), the first as
    a tensor.
    """

    def losses(
        self,
        features: Mapping[str, Tensor],
        samples: Any,
        targets: Sequence[Target],
        padded_size: tuple[int, int],
        /,
    ) -> dict[str, Tensor]:
        """Scalars by name, each with a gradient, also without objects.

        Args:
            features: ``[N, F, H_l, W_l]`` by name.
            samples: the sampled proposals, ``targets.roi_targets.TrainingSamples``; the same for
                the box head, the mask head and all branches.
            targets: one per image; boxes, masks and keypoints are in resized pixels, other fields
                are unchanged.
            padded_size: (height, width) of the batch.

        May ask for:
            mask_logits: ``[R, C, M, M]`` of the sampled objects (``samples.of_objects()``), with
                their gradient; None in a model without a mask branch.
        """
        ...

    def detect(
        self,
        features: Mapping[str, Tensor],
        detections: Detections,
        padded_size: tuple[int, int],
        /,
    ) -> dict[str, Tensor]:
        """Outputs ``[N, D, ...]`` by name; the values of padding are not used.

        An output ``scores [N, D]``, not negative, replaces the scores of the detections, which are
        then sorted by it (Mask Scoring R-CNN). ``detections.masks`` are there.
        """
        ...


class Refine(Protocol):
    """Moves the proposals before the box head sees them, a module: ``refine=stages``.

    The earlier stages of Cascade R-CNN do this. Number and order of the proposals stay the same.
    """

    def __call__(
        self, features: Mapping[str, Tensor], proposals: Proposals, padded_size: tuple[int, int], /
    ) -> Proposals:
        """The proposals with new boxes.

        Args:
            features: ``[N, F, H_l, W_l]`` by name.
            proposals: boxes ``[N, P, 4]``; padding stays zero.
            padded_size: (height, width) of the batch.
        """
        ...

    def losses(
        self,
        features: Mapping[str, Tensor],
        proposals: Proposals,
        padded_size: tuple[int, int],
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
        /,
    ) -> tuple[dict[str, Tensor], Proposals]:
        """Scalars by name, and the proposals with new boxes, without a gradient.

        Args:
            features, proposals, padded_size: as in a call.
            targets: one per image; boxes and masks are in resized pixels.
            generator: source of random numbers.
        """
        ...


class RPNOutput(Protocol):
    """Predictions for every anchor, as ``RPN.predict`` returns them."""

    anchors: Tensor  # [A, 4], the same for every image
    objectness: Tensor  # logits [N, A]
    pred_bbox_deltas: Tensor  # [N, A, 4]
    level_sizes: list[int]  # anchors per level; they add up to A


class RPN(Protocol):
    """The first stage as a whole: the argument ``rpn`` of ``FasterRCNN``."""

    def predict(self, images: ImageList, features: Mapping[str, Tensor], /) -> Any:
        """Predictions for every anchor, an ``RPNOutput``."""
        ...

    def propose(
        self,
        predictions: Any,
        image_sizes: Tensor,
        phase: Literal["training", "testing"] = "testing",
    ) -> Proposals:
        """The proposals of each image, clipped to ``image_sizes [N, 2]``."""
        ...

    def losses(
        self,
        predictions: Any,
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
        /,
    ) -> dict[str, Tensor]:
        """Scalars by name."""
        ...


class SecondStage(Protocol):
    """The second stage as a whole: the argument ``roi_heads`` of ``FasterRCNN``."""

    def has_mask(self) -> bool:
        """Whether ``detect_masks`` may be called."""
        ...

    def num_classes(self) -> int | None:
        """``C``, if it is known: labels of targets are then checked."""
        ...

    def detect_boxes(
        self, features: Mapping[str, Tensor], proposals: Proposals, images: ImageList, /
    ) -> tuple[Tensor, Tensor, Detections]:
        """Class logits ``[N, P, C]``, deltas ``[N, P, C, 4]``, and the detections."""
        ...

    def detect_masks(
        self, features: Mapping[str, Tensor], detections: Detections, images: ImageList, /
    ) -> Tensor:
        """Mask probabilities ``[N, D, 1, M, M]``."""
        ...

    def detect_branches(
        self,
        features: Mapping[str, Tensor],
        detections: Detections,
        padded_size: tuple[int, int],
        /,
    ) -> dict[str, Tensor]:
        """Further outputs ``[N, D, ...]`` by name; empty if there are none."""
        ...

    def postprocess_branches(
        self,
        results: list[Result],
        outputs: Mapping[str, Tensor],
        image_sizes: Tensor,
        original_image_sizes: Sequence[tuple[int, int]],
        /,
    ) -> list[Result]:
        """Adds ``outputs`` of ``detect_branches``, in the pixels of the original images."""
        ...

    def losses(
        self,
        features: Mapping[str, Tensor],
        proposals: Proposals,
        padded_size: tuple[int, int],
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
        /,
    ) -> dict[str, Tensor]:
        """Scalars by name; boxes and masks of ``targets`` are in resized pixels."""
        ...


class Transform(Protocol):
    """Images to a batch, and detections back: the argument ``transform`` of ``FasterRCNN``."""

    size_divisible: int  # sides of a batch are multiples of it
    fixed_size: tuple[int, int] | None  # (width, height) of every batch, if there is only one

    @property
    def image_mean(self) -> Sequence[float]:
        """One value per channel of the images."""
        ...

    def check_images(self, images: Sequence[Tensor], /) -> None:
        """Raises an error that names the first image that can't be used."""
        ...

    def __call__(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None, /
    ) -> tuple[ImageList, list[Target] | None]:
        """The batch, and the targets in its pixels."""
        ...

    def postprocess(
        self,
        detections: Detections,
        image_sizes: Tensor,
        original_image_sizes: Sequence[tuple[int, int]],
        /,
    ) -> list[Result]:
        """Results in the pixels of the original images, a dict per image."""
        ...
