"""Validation losses: the training losses on the validation images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from maskrcnn_scratch.data.loader import evaluation_loader, without_worker_traceback
from maskrcnn_scratch.training import distributed


@torch.no_grad()
def validation_losses(
    model: Any, dataset: Dataset[Any], num_workers: int, to_device: Callable[[Any], Any]
) -> dict[str, float]:
    """Mean of each loss over all images of ``dataset``, as ``val/loss`` and ``val/<name>``.

    With several processes each image is read by one of them and counts once; all processes get the
    result. Without images it is empty.

    Args:
        model: ``model.losses(images, targets)`` returns a dict of losses, in eval mode too.
        dataset: indexed by integers.
        num_workers: processes that read images.
        to_device: moves a batch of (images, targets) to the model's device.
    """
    loader = evaluation_loader(
        dataset,
        num_workers=num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    own = [
        {name: loss.item() for name, loss in model.losses(*to_device(batch)).items()}
        for batch in without_worker_traceback(loader)
    ]
    per_image = [losses for share in distributed.gather_on_main(own) for losses in share]
    found = {}
    if per_image:
        names = per_image[0]
        means = {f"val/{name}": float(np.mean([i[name] for i in per_image])) for name in names}
        found = {"val/loss": sum(means.values()), **means}
    return distributed.broadcast_from_main(found)
