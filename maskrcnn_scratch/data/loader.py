"""From a data set to batches: order, sharding, seeds and collation.

Every random choice is a function of (seed, epoch, image), never of what was drawn before. Training
that stops and goes on at step k therefore sees exactly the items an uninterrupted run sees, on any
number of workers, and two processes see between them the batches of one.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

Target = dict[str, Any]


class Draw(NamedTuple):
    """An image's index in its data set, and the epoch it is read for, which seeds augmentation."""

    epoch: int
    image: int


class TrainingBatches(Sampler[list[Draw]]):
    """Endless batches of one process, epoch after epoch, beginning at step ``start``.

    Each epoch is a permutation drawn from (seed, epoch). With ``aspect_ratio_groups`` portrait and
    landscape images do not meet in a batch, which saves padding; the few left over at the end of an
    epoch do. A step's batch of ``batch_size * world_size`` images is the same however many
    processes share it: process ``rank`` takes its ``batch_size`` consecutive images. The last batch
    of an epoch is filled up from the epoch's beginning, so that all processes take the same steps.

    ``sizes`` [images, 2] holds each image's (height, width). Set ``start`` before iterating to
    resume: step k is batch ``k % steps_per_epoch`` of epoch ``k // steps_per_epoch``.
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
    def steps_per_epoch(self) -> int:
        return -(-len(self.groups) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[Draw]]:
        first_epoch, skip = divmod(self.start, self.steps_per_epoch)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for epoch in count(first_epoch):
            for batch in self.global_batches(epoch)[skip:]:
                yield [Draw(epoch, image) for image in batch[mine]]
            skip = 0

    def global_batches(self, epoch: int) -> list[list[int]]:
        """The batches of all processes together in this epoch, as indices."""
        size = self.batch_size * self.world_size
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.groups)).tolist()
        batches: list[list[int]] = []
        waiting: dict[bool, list[int]] = {False: [], True: []}
        for index in order:
            group = waiting[bool(self.groups[index])]
            group.append(index)
            if len(group) == size:
                batches.append(group.copy())
                group.clear()
        rest = waiting[False] + waiting[True]
        while len(rest) % size:
            rest += order[: size - len(rest) % size]
        return batches + [rest[at : at + size] for at in range(0, len(rest), size)]


def collate(items: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Lists of images and of targets: images of one batch differ in size."""
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)


def training_loader(
    dataset: Dataset[tuple[Tensor, Target]], batches: TrainingBatches, num_workers: int = 0
) -> DataLoader[Any]:
    """Endless loader over ``batches``; ``dataset`` takes a :class:`Draw` as its index.

    Leaves the global random state alone, so that it can be made anew when training resumes.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=leave_signals_to_parent,
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
    """This process's share of the data set in order: each image goes to exactly one process."""
    share = range(rank, len(dataset), world_size)  # type: ignore[arg-type]
    return DataLoader(
        Subset(dataset, share),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=leave_signals_to_parent,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def without_worker_traceback(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's batches; an error in a worker is raised with the message it had there."""
    try:
        yield from loader
    except Exception as error:
        text = str(error)
        # The message stands after the traceback and the error's name, perhaps with its module's.
        heads = list(re.finditer(rf"^([\w.]+\.)?{type(error).__name__}: ", text, re.MULTILINE))
        if not text.startswith("Caught ") or not heads:
            raise
        raise type(error)(text[heads[-1].end() :].rstrip()) from None


def leave_signals_to_parent(worker: int) -> None:
    """Workers go on until the parent is done with them, and end with it if it is killed.

    Ctrl-C reaches every process of a terminal, and SIGTERM every process of a job that is ended:
    without workers the parent could not finish its step and save. The parent itself sends SIGTERM
    to workers that it left behind, and waits for their end before it exits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the sender is not told
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_told_by_parent, daemon=True).start()


def _exit_when_told_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
