"""A small model and data set for tests of the trainer, whose steps take milliseconds.

    python -m tests.training.toy OUTPUT '{"epochs": 3}' [where to die]

trains, or resumes the run in OUTPUT if there is one. Under torchrun it uses several processes.
"""

import json
import multiprocessing
import os
import signal
import sys

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from maskrcnn_scratch import checkpoint, losses
from maskrcnn_scratch.data.loader import Draw
from maskrcnn_scratch.training import distributed
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.trainer import Trainer

LOSSES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
SIZES = np.array([[8, 12]] * 7 + [[12, 8]] * 4)


class ToySet(Dataset):
    """Images of noise, from index and epoch. Image i has i objects."""

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, Draw) else (0, key)
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        target = {
            "boxes": torch.rand(index, 4, generator=generator),
            "labels": torch.ones(index, dtype=torch.int64),
            "annotation_ids": torch.arange(index) + 100 * index,
            "file_name": f"{index}.jpg",
        }
        return torch.rand(3, *SIZES[index].tolist(), generator=generator), target


class ToyModel(nn.Module):
    """Five losses of a linear layer on pooled pixels. The mask loss is a mean over objects."""

    def __init__(self, random=True):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4) if random else nn.Identity()
        self.dropout = nn.Dropout(0.2 if random else 0.0)
        self.head = nn.Linear(4, 5)
        self.loss_mask = losses.loss_mask

    def forward(self, images, targets):
        return self.losses(images, targets)

    def losses(self, images, targets):
        features = torch.stack(
            [self.norm(self.conv(i[None])).relu().mean((0, 2, 3)) for i in images]
        )
        outputs = self.head(self.dropout(features))  # [N, 5]
        found = dict(zip(LOSSES, outputs.square().mean(0), strict=True))
        counts = [len(target["labels"]) for target in targets]
        logits = outputs[:, :1].repeat_interleave(torch.tensor(counts), 0)  # one row per object
        labels = torch.zeros(len(logits), dtype=torch.int64)
        soft = torch.cat([target["boxes"] for target in targets])[:, :1, None]
        return found | {"loss_mask": self.loss_mask(logits[:, :, None, None], labels, soft)}


def toy_config(output, **changes):
    """A configuration with every feature switched on, for a few steps."""
    recipe = {
        "output": str(output),
        "epochs": 3,
        "batch_size": 4,
        "accumulate": 2,
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "clip_grad_norm": 0.5,
        "ema_decay": 0.9,
        "schedule": "cosine",
        "warmup": 0.3,
        "num_workers": 0,
        "save_every": 2,
        "log_every": 1,
        "tensorboard": False,
        "best_metric": "score",
    }
    return TrainConfig(**{**recipe, **changes})


def toy_trainer(output, model=None, **changes):
    return Trainer(
        model or ToyModel(),
        ToySet(),
        SIZES,
        toy_config(output, **changes),
        val_set=ToySet(),
        metadata={"class_names": {1: "noise"}},
    )


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_death(trainer, where):
    """Makes the process ``DIE_ON_RANK`` kill itself.

    ``forward:K``: in the K-th forward pass. ``write:K`` and ``written:K``: during and right after
    the K-th atomic write of a file.
    """
    what, _, number = where.partition(":")
    if distributed.rank() != int(os.environ.get("DIE_ON_RANK", 0)):
        return
    calls = 0

    def reached():
        nonlocal calls
        calls += 1
        return calls == int(number)

    if what == "forward":
        trainer.model.register_forward_pre_hook(lambda *_: die() if reached() else None)
    write = checkpoint.write_atomically

    def deadly_write(path, fill):
        if what == "written":
            write(path, fill)
        if what in ("write", "written") and reached():
            path.with_name(path.name + ".part").write_bytes(b"half a checkpoint")
            die()
        if what == "write":
            write(path, fill)

    if what != "forward":
        checkpoint.write_atomically = deadly_write


def main(output, changes="{}", where=""):
    with distributed.process_group(torch.device("cpu")):
        trainer = toy_trainer(output, **json.loads(changes))
        trainer.resume()
        if where:
            arrange_death(trainer, where)
        trainer.train()


def start(function, *args, **environment):
    """Runs ``function(*args)`` in a new process with all imports done, and returns the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_with_environment, args=(environment, function, args))
    process.start()
    return process


def _with_environment(environment, function, args):
    os.environ.update({name: str(value) for name, value in environment.items()})
    multiprocessing.set_start_method("fork", force=True)  # of the data loader's workers
    torch.set_num_threads(1)  # more would compete with other tests
    function(*args)


def run(function, *args):
    """Runs ``start``, waits for the end and returns the exit code, negative for a signal."""
    process = start(function, *args)
    process.join(300)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{function.__name__} did not end")
    return process.exitcode


if __name__ == "__main__":
    main(*sys.argv[1:])
