"""Repeat-factor sampling (Gupta et al. 2019, "LVIS", section 6): images of rare classes come often.

An image is repeated max(1, sqrt(t / f)) times per epoch, where f is the fraction of images with its
rarest class. The order is passed to the trainer: ``Trainer(..., batches=batches(...))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from maskrcnn_scratch.data.loader import TrainingBatches


def repeat_factors(labels: Sequence[Sequence[int]], threshold: float) -> np.ndarray:
    """How often each image is read per epoch, ``[images]``, from the labels in each image.

    ``threshold`` is the paper's t: classes in a smaller fraction of the images are repeated.
    """
    images_with: dict[int, int] = {}
    for of_image in labels:
        for label in set(of_image):
            images_with[label] = images_with.get(label, 0) + 1
    of_class = {
        label: max(1.0, float(np.sqrt(threshold * len(labels) / count)))
        for label, count in images_with.items()
    }
    return np.array([max((of_class[k] for k in of_image), default=1.0) for of_image in labels])


class RepeatFactorBatches(TrainingBatches):
    """Batches of one process in which image i comes ``factors[i]`` times per epoch.

    A fraction is rounded up or down at random, so that it is right on average, in such a way that
    every epoch has the same length.
    """

    def __init__(self, *arguments: Any, factors: np.ndarray, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.factors = factors

    @property
    def images_per_epoch(self) -> int:
        return round(self.factors.sum())

    def order(self, epoch: int) -> list[int]:
        random = np.random.default_rng((self.seed, epoch))
        shuffled = random.permutation(len(self.factors))
        # Equal steps through the factors, laid end to end: image i is met floor or ceil times.
        ends = self.factors[shuffled].cumsum()
        step = ends[-1] / self.images_per_epoch
        met = (np.arange(self.images_per_epoch) + random.uniform()) * step
        images = shuffled[np.searchsorted(ends, met, side="right").clip(max=len(ends) - 1)]
        return random.permutation(images).tolist()


def batches(labels: Sequence[Sequence[int]], threshold: float) -> Callable[..., TrainingBatches]:
    """The argument ``batches`` of ``Trainer``."""
    return partial(RepeatFactorBatches, factors=repeat_factors(labels, threshold))
