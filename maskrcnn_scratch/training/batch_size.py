"""``--batch-size auto``: the most images per step that fit into the memory of a GPU."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch.data.batch import Batch
from maskrcnn_scratch.training import distributed
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.step_context import autocast, seed_torch

ON_CPU = 4  # the default of TrainConfig
SHARE = 0.85  # of the GPU's memory: batches differ, and memory is fragmented
MOST = 64  # images per process and micro-batch


def automatic_batch_size(
    config: TrainConfig,
    build: Callable[[], nn.Module],
    samples: Sequence[tuple[Tensor, Any]],
    device: torch.device,
    images: int,
) -> int:
    """The number of images per step, over all processes and micro-batches.

    On a GPU, forward and backward passes of a new model are measured with 1, 2, 4, ... images. On
    the CPU it is the default, with a warning: its memory is shared, and not measured.

    Args:
        build: returns the model.
        samples: large images with many objects, with their targets; they are repeated.
        images: number of training images, which is never exceeded.

    Raises:
        ValueError: not even one image fits.
    """
    parts = distributed.world_size() * config.accumulate
    if device.type != "cuda":
        warnings.warn(
            f"--batch-size auto measures the memory of a GPU: on the {device.type} it is "
            f"{ON_CPU}, the default",
            stacklevel=2,
        )
        return ON_CPU * parts
    found = 0
    if distributed.is_main():
        total = torch.cuda.get_device_properties(device).total_memory
        peak = cuda_memory(build().to(device), samples, config, device)
        found = fitting_batch_size(peak, int(SHARE * total), min(MOST, max(1, images // parts)))
        del peak
        gc.collect()
        torch.cuda.empty_cache()
    return distributed.broadcast_from_main(found) * parts


def fitting_batch_size(peak_memory: Callable[[int], int], available: int, most: int) -> int:
    """The largest power of two up to ``most`` of images that fit.

    Args:
        peak_memory: bytes that a step of so many images takes; may raise OutOfMemoryError.
        available: bytes.

    Raises:
        ValueError: one image does not fit.
    """
    fits, tried, needed = 0, 1, 0
    while tried <= most:
        try:
            needed = peak_memory(tried)
        except torch.OutOfMemoryError:
            break
        if needed > available:
            break
        fits, tried = tried, 2 * tried
    if not fits:
        raise ValueError(
            f"--batch-size auto: one image does not fit into {available / 2**30:.1f} GiB: use "
            "smaller images (--min-size, --max-size) or --precision bf16"
        )
    return fits


def cuda_memory(
    model: nn.Module,
    samples: Sequence[tuple[Tensor, Any]],
    config: TrainConfig,
    device: torch.device,
) -> Callable[[int], int]:
    """A function from a number of images to the bytes that a training step with them takes.

    It includes the states of the optimizer and the averaged weights, which are not allocated.
    """
    model.train()
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    everything = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    states = trained * (2 if config.optimizer == "adamw" else 1)
    states += everything if config.ema_decay else 0

    def peak(count: int) -> int:
        chosen = [samples[index % len(samples)] for index in range(count)]
        images, targets = zip(*chosen, strict=True)
        batch = Batch(list(images), list(targets)).to(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        seed_torch(config.seed)
        try:
            with autocast(device, config.precision):
                losses = model(batch.images, batch.targets)
            sum(losses.values()).backward()
            return torch.cuda.max_memory_reserved(device) + states
        finally:
            model.zero_grad(set_to_none=True)

    return peak
