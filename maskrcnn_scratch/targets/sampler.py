"""Which anchors and proposals enter the losses (Faster R-CNN, section 3.1.3; Fast R-CNN, 2.3).

Most boxes are background. Each image contributes a fixed number of sampled boxes, of which at most
a given fraction is positive. A label of 1 or more is positive, 0 is negative, ``IGNORE_LABEL`` is
never sampled.

``BalancedPositiveNegativeSampler`` is torchvision's, number for number. ``DeviceSampler`` has the
same distribution and never synchronises with a GPU; see there. Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from maskrcnn_scratch.call_part import accepts
from maskrcnn_scratch.structures import IGNORE_LABEL

# Positives and negatives, a tensor per image: masks or indices, see ``interfaces.Sampler``.
Sample = tuple[list[Tensor], list[Tensor]]

MASK_TYPES = (torch.uint8, torch.bool)

# What a sampler of fixed size returns for an index that it had no box for.
NO_SAMPLE = -1


class BalancedPositiveNegativeSampler:
    """Samples uniformly without replacement; negatives fill up what positives leave.

    Without a generator the numbers come from the device's global one, in torchvision's order: per
    image one ``randperm`` of the positives, then one of the negatives. So the same seed gives the
    same sample.

    Args:
        batch_size_per_image: boxes sampled per image, if there are that many.
        positive_fraction: the largest fraction of them that is positive.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, labels: list[Tensor], generator: torch.Generator | None = None) -> Sample:
        """Samples from ``labels``, a tensor ``[A]`` (integer or float) per image.

        Returns:
            Masks of the positives and of the negatives, uint8 ``[A]`` per image.
        """
        positives: list[Tensor] = []
        negatives: list[Tensor] = []
        for labels_in_image in labels:
            positive = (labels_in_image >= 1).nonzero().squeeze(1)
            negative = (labels_in_image == 0).nonzero().squeeze(1)
            max_positive = int(self.batch_size_per_image * self.positive_fraction)
            num_positive = min(len(positive), max_positive)
            num_negative = min(len(negative), self.batch_size_per_image - num_positive)
            nothing = torch.zeros_like(labels_in_image, dtype=torch.uint8)
            for masks, indices, count in (
                (positives, positive, num_positive),
                (negatives, negative, num_negative),
            ):
                masks.append(nothing.index_fill(0, _draw(indices, count, generator), 1))
        return positives, negatives


def _draw(indices: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` of ``indices [K]``. All K are permuted; torchvision does."""
    order = torch.randperm(len(indices), generator=generator, device=indices.device)
    return indices[order[:count]]


class ReplaySampler:
    """Returns recorded samples, one per call: two models can then be given the same boxes.

    Args:
        recorded: for each call to come, what a sampler returned.
    """

    def __init__(self, recorded: Iterable[Sample]) -> None:
        self._recorded = iter(recorded)

    def __call__(self, labels: list[Tensor], generator: torch.Generator | None = None) -> Sample:
        """The next recorded sample; of ``labels`` only the shapes are used, as a check.

        Raises:
            ValueError: no sample is left, or it was recorded for other images.
        """
        sample = next(self._recorded, None)
        if sample is None:
            raise ValueError("all recorded samples were used")
        for indices_by_image in as_indices(sample):
            if len(indices_by_image) != len(labels):
                raise ValueError(
                    f"the sample was recorded for {len(indices_by_image)} images, not {len(labels)}"
                )
            for image, (indices, labels_in_image) in enumerate(
                zip(indices_by_image, labels, strict=True)
            ):
                if len(indices) > 0 and int(indices.max()) >= len(labels_in_image):
                    raise ValueError(
                        f"image {image}: recorded index {int(indices.max())} is outside its "
                        f"{len(labels_in_image)} boxes"
                    )
        return sample


class DeviceSampler:
    """``BalancedPositiveNegativeSampler`` in distribution, without host synchronisation.

    That sampler's shapes depend on how many positives there are, which a GPU must report to the
    host first. Here shapes depend on the arguments alone. Every box gets a random key; the largest
    keys among the positives, then the largest among the negatives, are the sample. Per image the
    first tensor has ``batch_size_per_image * positive_fraction`` indices: the positives, then
    negatives where there are too few. The second tensor has the rest. Missing ones are
    ``NO_SAMPLE``.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, labels: list[Tensor], generator: torch.Generator | None = None) -> Sample:
        """Samples from ``labels``, a tensor ``[A]`` (integer or float) per image."""
        padded = pad_sequence(labels, batch_first=True, padding_value=IGNORE_LABEL)  # [N, A]
        total = min(self.batch_size_per_image, padded.shape[1])  # B
        max_positive = min(int(self.batch_size_per_image * self.positive_fraction), total)
        keys = torch.rand(padded.shape, generator=generator, device=padded.device)
        positive = keys.masked_fill(padded < 1, -1).topk(max_positive, dim=1)
        negative = keys.masked_fill(padded != 0, -1).topk(total, dim=1)
        indices = torch.cat((positive.indices, negative.indices), dim=1)
        found = torch.cat((positive.values, negative.values), dim=1) >= 0
        indices = indices.masked_fill(~found, NO_SAMPLE)  # [N, max_positive + B]

        num_positive = found[:, :max_positive].sum(dim=1, keepdim=True)  # [N, 1]
        column = torch.arange(total, device=padded.device)  # [B]
        negatives_column = column - num_positive + max_positive  # they follow the last positive
        sampled = indices.gather(
            1, torch.where(column < num_positive, column, negatives_column)
        )  # [N, B]
        return list(sampled[:, :max_positive]), list(sampled[:, max_positive:])


def with_generator(
    sampler: Callable[..., Any], generator: torch.Generator | None
) -> Callable[..., Any]:
    """``sampler`` with its generator, if it accepts one; torchvision's does not."""
    return partial(sampler, generator=generator) if accepts(sampler, "generator") else sampler


def as_indices(sample: Sequence[Sequence[Tensor]]) -> Sample:
    """What a sampler returned, with masks as the indices of what they select, ascending."""
    positives, negatives = (
        [one.nonzero().squeeze(1) if one.dtype in MASK_TYPES else one for one in of_kind]
        for of_kind in sample
    )
    return positives, negatives


def concatenate_samples(
    positives: Sequence[Tensor], negatives: Sequence[Tensor], labels: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """A sample as indices into the boxes of all images, one image after another.

    The positives of all images come first, then the negatives, as in torchvision.

    Args:
        positives, negatives: indices, int64 per image.
        labels: ``[A]`` per image, from which it sampled.

    Returns:
        sampled: int64 ``[B]`` in ``[0, N * A)``.
        sampled_labels: ``[B]``; ``IGNORE_LABEL`` where the sampler wrote ``NO_SAMPLE``.
    """
    firsts = [0, *accumulate(len(labels_in_image) for labels_in_image in labels)]
    sampled = torch.cat(
        [
            indices.clamp(min=0) + first
            for kind in (positives, negatives)
            for indices, first in zip(kind, firsts, strict=False)
        ]
    )
    found = torch.cat((*positives, *negatives)) != NO_SAMPLE
    return sampled, torch.cat(list(labels))[sampled].where(found, IGNORE_LABEL)


def use_device_sampler(model: Any) -> None:
    """Gives both stages of a ``GeneralizedRCNN`` a ``DeviceSampler`` with the sizes they have.

    ``model.losses`` then never synchronises, and leaves it to the caller to check the values of the
    targets (``check_targets``) before they are copied to the device. A sampler other than
    ``BalancedPositiveNegativeSampler`` itself is kept.
    """
    for stage in (model.rpn, model.roi_heads):
        current = stage.fg_bg_sampler
        if type(current) is BalancedPositiveNegativeSampler:
            stage.fg_bg_sampler = DeviceSampler(
                current.batch_size_per_image, current.positive_fraction
            )
    model.check_target_values = False
