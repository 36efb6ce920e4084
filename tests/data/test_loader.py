"""Batches: each image once per epoch, independent of processes, workers and resuming."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from maskrcnn_scratch.data.loader import (
    Draw,
    TrainingBatches,
    evaluation_loader,
    training_loader,
)

SIZES = np.array([[10, 20], [20, 10]] * 11 + [[5, 30]])  # 23 images, 12 landscape


class Echo(Dataset):
    """Each item holds the index that it was read for."""

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        return torch.zeros(3, 1, 1), {"index": tuple(index) if isinstance(index, Draw) else index}


@given(st.integers(1, 7), st.integers(1, 40), st.integers(0, 5), st.booleans())
def test_every_image_is_seen_each_epoch(batch_size, images, epoch, groups):
    batches = TrainingBatches(SIZES[:images], batch_size, aspect_ratio_groups=groups)
    epoch_batches = batches.global_batches(epoch)
    assert len(epoch_batches) == batches.steps_per_epoch
    assert {len(batch) for batch in epoch_batches} == {batch_size}
    assert {index for batch in epoch_batches for index in batch} == set(range(min(images, 23)))


def test_epochs_differ_and_seeds_differ():
    batches, other = TrainingBatches(SIZES, 4), TrainingBatches(SIZES, 4, seed=1)
    assert batches.global_batches(0) == TrainingBatches(SIZES, 4).global_batches(0)
    assert batches.global_batches(0) != batches.global_batches(1)
    assert batches.global_batches(0) != other.global_batches(0)


def test_only_the_last_batches_mix_portrait_and_landscape():
    *full, _, _ = TrainingBatches(SIZES, 4).global_batches(0)
    landscape = SIZES[:, 1] > SIZES[:, 0]
    assert len(full) == 4
    assert all(len(set(landscape[batch].tolist())) == 1 for batch in full)


@given(st.integers(0, 20))
def test_resumed_batches_are_the_uninterrupted_ones(start):
    whole = list(islice(TrainingBatches(SIZES, 4, seed=3), start + 10))
    assert list(islice(TrainingBatches(SIZES, 4, seed=3, start=start), 10)) == whole[start:]


class EveryImageTwice(TrainingBatches):
    @property
    def images_per_epoch(self):
        return 2 * len(self.groups)

    def order(self, epoch):
        return 2 * super().order(epoch)


def test_another_order():
    batches = EveryImageTwice(SIZES, 4)
    epoch = batches.global_batches(1)
    assert len(epoch) == batches.steps_per_epoch == -(-2 * len(SIZES) // 4)
    images = [index for batch in epoch for index in batch][: 2 * len(SIZES)]
    assert sorted(images) == sorted(2 * list(range(len(SIZES))))


def test_two_processes_share_the_batches_of_one():
    one = islice(TrainingBatches(SIZES, 4), 15)
    shares = [TrainingBatches(SIZES, 2, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(one, *shares, strict=False):
        assert batch == parts[0] + parts[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_loader_does_not_change_the_global_random_state(num_workers):
    state = torch.get_rng_state()
    loader = training_loader(Echo(), TrainingBatches(SIZES, 4), num_workers)
    read = [[target["index"] for target in targets] for _, targets in islice(loader, 8)]
    assert read == list(islice(TrainingBatches(SIZES, 4), 8))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_evaluation_reads_each_image_exactly_once(world_size):
    loaders = [
        evaluation_loader(Echo(), batch_size=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen = [t["index"] for loader in loaders for _, targets in loader for t in targets]
    assert sorted(seen) == list(range(len(SIZES)))


def test_evaluation_in_one_batch():
    """With a number that no integer of C holds."""
    ((images, _),) = evaluation_loader(Echo(), batch_size=10**30)
    assert len(images) == len(SIZES)


def test_bad_arguments():
    with pytest.raises(ValueError, match="empty data set"):
        TrainingBatches(SIZES[:0], 2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        TrainingBatches(SIZES, 0)
