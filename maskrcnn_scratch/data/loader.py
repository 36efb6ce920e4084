"""From a data set to batches: order, sharding, seeds and collation.

Every random choice is a function of (seed, epoch, image) and not of earlier draws. A run that is
resumed at step k therefore reads the same items as an uninterrupted run, with any number of
workers, and two processes together read the batches of one.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from maskrcnn_scratch.data.batch import Target, collate
from maskrcnn_scratch.data.pixel_limit import current_pixel_limit, set_pixel_limit


class Draw(NamedTuple):
    """Index of an image in its data set, and the epoch it is read for. Both seed augmentation."""

    epoch: int
    image: int


class TrainingBatches(Sampler[list[Draw]]):
    """Endless batches of one process, epoch after epoch, from step ``start`` on.

    Each epoch is a permutation drawn from (seed, epoch). With ``aspect_ratio_groups`` a batch has
    either portrait or landscape images, which saves padding; only the last batches of an epoch mix
    them. The global batch of a step has ``batch_size * world_size`` images and does not depend on
    the number of processes: process ``rank`` takes ``batch_size`` consecutive images of it. The
    last batch of an epoch is completed with the epoch's first images, so that all processes take
    the same number of steps.

    A sampler that repeats or skips images overrides ``order`` and ``images_per_epoch``.

    Args:
        sizes: (height, width) of each image, ``[images, 2]``.
        batch_size: images per batch of one process.
        start: first step to read. Set it before iterating to resume a run: step k is batch
            ``k % steps_per_epoch`` of epoch ``k // steps_per_epoch``.

    Raises:
        ValueError: there is no image, or ``batch_size`` is less than 1.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        aspect_ratio_groups: bool = True,
        start: int = 0,
    ) -> None:
        if len(sizes) == 0:
            raise ValueError("cannot make batches of an empty data set")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start
        landscape = sizes[:, 1] > sizes[:, 0]
        self.groups = landscape if aspect_ratio_groups else np.zeros(len(sizes), bool)  # [images]

    @property
    def images_per_epoch(self) -> int:
        """The length of ``order``."""
        return len(self.groups)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.images_per_epoch // (self.batch_size * self.world_size))

    def order(self, epoch: int) -> list[int]:
        """The images of an epoch, in the order in which batches take them."""
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.groups)).tolist()

    def __iter__(self) -> Iterator[list[Draw]]:
        first_epoch, skip = divmod(self.start, self.steps_per_epoch)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for epoch in count(first_epoch):
            for batch in self.global_batches(epoch)[skip:]:
                yield [Draw(epoch, image) for image in batch[mine]]
            skip = 0

    def global_batches(self, epoch: int) -> list[list[int]]:
        """The global batches of an epoch, as indices of images."""
        size = self.batch_size * self.world_size
        order = self.order(epoch)
        batches: list[list[int]] = []
        incomplete: dict[bool, list[int]] = {False: [], True: []}  # by group
        for index in order:
            group = incomplete[bool(self.groups[index])]
            group.append(index)
            if len(group) == size:
                batches.append(group.copy())
                group.clear()
        rest = incomplete[False] + incomplete[True]
        while len(rest) % size:
            rest += order[: size - len(rest) % size]
        return batches + [rest[at : at + size] for at in range(0, len(rest), size)]


def training_loader(
    dataset: Dataset[tuple[Tensor, Target]], batches: TrainingBatches, num_workers: int = 0
) -> DataLoader[Any]:
    """Endless loader over ``batches``; ``dataset`` takes a :class:`Draw` as its index.

    It does not change the global random state, so that a resumed run draws the same numbers.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=partial(start_worker, max_pixels=current_pixel_limit()),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(batches.seed),
    )


def evaluation_loader(
    dataset: Dataset[tuple[Tensor, Target]],
    batch_size: int = 1,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Any]:
    """Loader of this process's share of a data set, in order. Each image is read by one process."""
    share = range(rank, len(dataset), world_size)  # type: ignore[arg-type]
    return DataLoader(
        Subset(dataset, share),
        batch_size=min(batch_size, max(len(share), 1)),  # larger numbers may not fit its integers
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=partial(start_worker, max_pixels=current_pixel_limit()),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def without_worker_traceback(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's batches. An error in a worker is raised with its own message only.

    The workers end before it is raised.
    """
    try:
        yield from loader
    except Exception as error:
        text = str(error)
        # The message follows the traceback and the name of the error, with or without its module.
        heads = list(re.finditer(rf"^([\w.]+\.)?{type(error).__name__}: ", text, re.MULTILINE))
        if not text.startswith("Caught ") or not heads:
            raise
        # A frame of the traceback holds the error, and so the workers: until garbage is collected,
        # which then waits 5 seconds for each.
        error.__traceback__ = None
        raise type(error)(text[heads[-1].end() :].rstrip()) from None


def start_worker(worker: int, max_pixels: int | None) -> None:
    """What each worker begins with; ``max_pixels`` is that of its parent."""
    set_pixel_limit(max_pixels)
    leave_signals_to_parent()


def leave_signals_to_parent() -> None:
    """Makes a worker ignore signals that are meant for the parent process.

    Ctrl-C reaches every process of a terminal, and SIGTERM may reach every process of a job. The
    parent needs its workers to finish the step and save. A SIGTERM that the parent itself sends at
    its exit still ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # only Linux reports the sender of a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_told_by_parent, daemon=True).start()


def _exit_when_told_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
