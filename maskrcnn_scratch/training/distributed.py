"""Training on several processes, as ``torchrun`` starts them; with one process all is a no-op."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskrcnn_scratch import losses

T = TypeVar("T")


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes of ``torchrun``, by gloo on CPUs and nccl on GPUs; gives one's device.

    A process that dies takes the others along: torchrun ends them, and gloo's connections break at
    once. The timeout only serves where a process hangs without dying.
    """
    if "RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=10))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one process that prints and writes."""
    return rank() == 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of all processes' ``values``; shapes must agree."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def any_rank(value: bool, device: torch.device) -> bool:
    """Whether ``value`` is true on at least one process; waits for the others, if there are any."""
    if world_size() == 1:
        return value
    return bool(sum_over_ranks(torch.tensor(float(value), device=device)) > 0)


def gather_on_main(value: T) -> list[T]:
    """All processes' values by rank on the main process; an empty list on the others."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, gathered)
    return gathered or []


def broadcast_from_main(value: T) -> T:
    """The main process's value on every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def broadcast_buffers(model: nn.Module) -> None:
    """Gives all processes the main one's batch-norm statistics, which each tracked on its own."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def average_losses_over_all_ranks(model: nn.Module) -> None:
    """Makes the losses of several processes those of one process on the whole batch.

    Each loss is a mean over samples. A mean of the processes' means would weigh a sample more the
    fewer its process has, of positives above all; so each sum is divided by the count of all
    processes instead. Losses that were swapped for others stay as they are.
    """
    if world_size() == 1:
        return
    for module in model.modules():
        for name in _LOSSES:
            if getattr(module, name, None) is getattr(losses, name):
                setattr(module, name, partial(_mean_over_all_ranks, getattr(losses, name)))


_LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")


def _mean_over_all_ranks(
    loss: Callable[..., Tensor], predictions: Tensor, labels: Tensor, *targets: Tensor
) -> Tensor:
    if not torch.is_grad_enabled():  # a validation loss: each process has its own images
        return loss(predictions, labels, *targets)
    own = (labels >= 0).sum().float()
    # DistributedDataParallel divides the sum of the gradients by the number of processes.
    return loss(predictions, labels, *targets) * (
        own * world_size() / sum_over_ranks(own).clamp(min=1)
    )
