"""Training on several processes started by ``torchrun``; without effect on a single process."""

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


HANG = timedelta(minutes=10)  # how long the others wait for a process that does not answer


@contextmanager
def process_group(device: torch.device, timeout: timedelta = HANG) -> Iterator[torch.device]:
    """Joins the processes of ``torchrun``, by gloo on CPUs and nccl on GPUs; yields the device.

    If a process dies, the others end too: torchrun ends them, and gloo's connections break at
    once. ``timeout`` is for a process that hangs without dying.
    """
    if "RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timeout)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of ``values`` over all processes. Shapes must agree."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def any_rank(value: bool, device: torch.device) -> bool:
    """Whether ``value`` is true on at least one process. All processes must call this."""
    if world_size() == 1:
        return value
    return bool(sum_over_ranks(torch.tensor(float(value), device=device)) > 0)


def gather_on_main(value: T) -> list[T]:
    """Values of all processes, by rank, on the main process; an empty list on the others."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, gathered)
    return gathered or []


def broadcast_from_main(value: T) -> T:
    """The value of the main process, on every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def broadcast_buffers(model: nn.Module) -> None:
    """Copies the batch-norm statistics of the main process to the others.

    Each process updates its own from its own images.
    """
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def average_losses_over_all_ranks(model: nn.Module) -> None:
    """Makes gradients on several processes equal those of one process with the whole batch.

    Each loss is a mean over samples, and processes have different numbers of samples. So each sum
    is divided by the number of samples on all processes. Custom losses are not changed.
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
    if not torch.is_grad_enabled():  # validation: the losses are averaged per image
        return loss(predictions, labels, *targets)
    own = (labels >= 0).sum().float()
    # DistributedDataParallel divides the sum of the gradients by the number of processes.
    return loss(predictions, labels, *targets) * (
        own * world_size() / sum_over_ranks(own).clamp(min=1)
    )
