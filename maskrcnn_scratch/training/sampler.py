"""Which anchors and proposals enter the losses: a fixed number, at most a given part positive.

A label is 1 or more for a positive, 0 for a negative and -1 for a box that must not be drawn.
N images, A boxes an image, B = ``batch_size_per_image`` of them drawn.

Two ways to draw: ``BalancedPositiveNegativeSampler`` has torchvision's numbers for a seed, and a
GPU must be waited for to know how many boxes it drew; ``DeviceSampler`` has the same distribution
and always the same number of indices, some of which may be empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Positives and negatives, an int64 tensor of indices for each image; see ``interfaces.Sampler``.
SampledIndices = tuple[list[Tensor], list[Tensor]]


class BalancedPositiveNegativeSampler:
    """Draws uniformly, without replacement; negatives fill the places positives leave empty.

    Without a generator it draws from the device's global one as torchvision does, so that the same
    seed gives the same sample: a ``randperm`` of the positives, then one of the negatives, image by
    image.

    Args:
        batch_size_per_image: number of boxes drawn, where there are so many.
        positive_fraction: the part of them that may be positive.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(
        self, labels: list[Tensor], generator: torch.Generator | None = None
    ) -> SampledIndices:
        """Draws from ``labels``, one tensor ``[A]`` (integer or float) for each image."""
        positives, negatives = [], []
        for labels_in_image in labels:
            positive = (labels_in_image >= 1).nonzero().squeeze(1)
            negative = (labels_in_image == 0).nonzero().squeeze(1)
            max_positive = int(self.batch_size_per_image * self.positive_fraction)
            num_positive = min(len(positive), max_positive)
            num_negative = min(len(negative), self.batch_size_per_image - num_positive)
            positives.append(_draw(positive, num_positive, generator))
            negatives.append(_draw(negative, num_negative, generator))
        return positives, negatives


def _draw(indices: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` of ``indices [K]``, sorted. All K are shuffled even if all are taken: parity."""
    order = torch.randperm(len(indices), generator=generator, device=indices.device)
    return indices[order[:count]].sort().values


class ReplaySampler:
    """Hands out recorded samples, one a call: the way to give two models the same boxes.

    Args:
        recorded: for each call to come, positives and negatives as
            ``BalancedPositiveNegativeSampler`` returns them.
    """

    def __init__(self, recorded: Iterable[SampledIndices]) -> None:
        self._recorded = iter(recorded)

    def __call__(
        self, labels: list[Tensor], generator: torch.Generator | None = None
    ) -> SampledIndices:
        """The next recorded sample; ``labels`` only say for how many images and boxes.

        Raises:
            ValueError: there is none left, or it was recorded for other images.
        """
        sample = next(self._recorded, None)
        if sample is None:
            raise ValueError("the recorded samples are used up")
        for indices_by_image in sample:
            if len(indices_by_image) != len(labels):
                raise ValueError(
                    f"the sample was recorded for {len(indices_by_image)} images, not {len(labels)}"
                )
            for image, (indices, labels_in_image) in enumerate(
                zip(indices_by_image, labels, strict=True)
            ):
                if len(indices) > 0 and int(indices.max()) >= len(labels_in_image):
                    raise ValueError(
                        f"image {image}: recorded index {int(indices.max())} is outside of its "
                        f"{len(labels_in_image)} boxes"
                    )
        return sample


class DeviceSampler:
    """Draws as ``BalancedPositiveNegativeSampler`` does (in distribution), without a host sync.

    Every box gets a random key; the largest keys among the positives, and then among the
    negatives, are the sample. Shapes depend on arguments alone, none on the labels' values: the
    first tensor of an image has ``B * positive_fraction`` places, which negatives fill where there
    are not so many positives, the second has the rest of ``B``. Places that are left over hold -1.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(
        self, labels: list[Tensor], generator: torch.Generator | None = None
    ) -> SampledIndices:
        """Draws from ``labels``, one tensor ``[A]`` (integer or float) for each image."""
        padded = pad_sequence(labels, batch_first=True, padding_value=-1)  # [N, A]
        places = min(self.batch_size_per_image, padded.shape[1])
        max_positive = min(int(self.batch_size_per_image * self.positive_fraction), places)
        keys = torch.rand(padded.shape, generator=generator, device=padded.device)
        positive = keys.masked_fill(padded < 1, -1).topk(max_positive, dim=1)
        negative = keys.masked_fill(padded != 0, -1).topk(places, dim=1)
        indices = torch.cat((positive.indices, negative.indices), dim=1)
        found = torch.cat((positive.values, negative.values), dim=1) >= 0
        indices = indices.masked_fill(~found, -1)  # [N, max_positive + B]

        num_positive = found[:, :max_positive].sum(dim=1, keepdim=True)  # [N, 1]
        place = torch.arange(places, device=padded.device)  # [B]
        after = place - num_positive + max_positive  # negatives follow the last positive
        drawn = indices.gather(1, torch.where(place < num_positive, place, after))  # [N, B]
        return list(drawn[:, :max_positive]), list(drawn[:, max_positive:])


def draw_on_device(model: Any) -> None:
    """Gives both stages of a ``GeneralizedRCNN`` a ``DeviceSampler`` of the same sizes.

    Its losses then wait for nothing, and so leave it to the caller to check the targets' values
    (``check_targets``) before they go to the device.
    """
    for stage in (model.rpn, model.roi_heads):
        strict = stage.fg_bg_sampler
        stage.fg_bg_sampler = DeviceSampler(strict.batch_size_per_image, strict.positive_fraction)
    model.check_target_values = False
