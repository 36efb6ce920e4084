"""Batches of worker processes: the same tensors, and few open files."""

import io
import multiprocessing.reduction as reduction
import pickle
import resource
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from maskrcnn_scratch.data.batch import collate
from maskrcnn_scratch.data.loader import TrainingBatches, evaluation_loader, training_loader
from tests.training import toy


def make_item(index, objects):
    generator = torch.Generator().manual_seed(index)
    target = {
        "boxes": torch.rand(objects, 4, generator=generator),
        "labels": torch.arange(objects),
        "masks": torch.ones(objects, 5, 7, dtype=torch.uint8),
        "area": torch.rand(objects, generator=generator),
        "iscrowd": torch.zeros(objects, dtype=torch.bool),
        "annotation_ids": torch.arange(objects),
        "image_id": index,
        "file_name": f"{index}.png",
    }
    return torch.rand(3, 5, 7, generator=generator), target


def sent(batch):
    """The batch as another process receives it."""
    stream = io.BytesIO()
    reduction.ForkingPickler(stream, pickle.HIGHEST_PROTOCOL).dump(batch)
    return pickle.loads(stream.getvalue())


@pytest.mark.parametrize("objects", [0, 1, 5])
def test_a_sent_batch_is_the_same(objects):
    items = [make_item(index, objects) for index in range(3)]
    layouts = [
        items[0][0],
        items[1][0].transpose(1, 2),
        items[2][0][:, 1:4, 2:5],
        torch.zeros(3, 0, 4),
        torch.ones(3, 1, 1).expand(3, 4, 4),
    ]
    batch = collate([(image, items[0][1]) for image in layouts])
    received = sent(batch)
    for ours, theirs in zip(received.images, batch.images, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == torch.empty_like(theirs).stride()
    for ours, theirs in zip(received.targets, batch.targets, strict=True):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            if isinstance(value, torch.Tensor):
                assert ours[name].dtype == value.dtype
                assert torch.equal(ours[name], value)
            else:
                assert ours[name] == value


class ManyTensors(Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, key):
        return make_item(key if isinstance(key, int) else key.image, 2)


def read_with_few_files(loader_name):
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    if loader_name == "training":
        batches = TrainingBatches(np.full((400, 2), 5), 40)
        loader = training_loader(ManyTensors(), batches, num_workers=4)
    else:
        loader = evaluation_loader(ManyTensors(), batch_size=40, num_workers=4)
    kept = list(islice(loader, 8))
    assert sum(len(images) for images, _ in kept) == 320


@pytest.mark.parametrize("loader_name", ["training", "evaluation"])
def test_large_batches_need_few_open_files(loader_name):
    assert toy.run(read_with_few_files, loader_name) == 0
