"""``train_batch.jpg``: images after augmentation with their targets, as the model sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from maskrcnn_scratch.pictures.objects import Drawn, draw_objects
from maskrcnn_scratch.pictures.style import short
from maskrcnn_scratch.transform import GeneralizedRCNNTransform

MOST_IMAGES = 12


def train_batch_figure(
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Any]],
    transform: GeneralizedRCNNTransform,
    names: Mapping[int, str],
) -> Figure:
    """A batch after the model's own resize and padding, with boxes, masks and classes.

    Args:
        images: ``[3, H, W]`` each, after augmentation. Up to 12 are shown.
        targets: one per image, with ``file_name``.
        transform: the model's; it draws its size at random in training.
        names: class names by label.
    """
    images, targets = images[:MOST_IMAGES], targets[:MOST_IMAGES]
    with torch.random.fork_rng(devices=()):
        batch, resized = transform(images, targets)
    assert resized is not None
    mean, std = (torch.tensor(values)[:, None, None]
                 for values in (transform.image_mean, transform.image_std))  # fmt: skip
    columns = min(4, math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    height, width = batch.padded_size
    side = 10.5 / columns
    figure = Figure(figsize=(10.5, rows * (side * height / width + 0.35) + 0.4),
                    layout="constrained")  # fmt: skip
    figure.suptitle(
        f"training batch after augmentation, {height} x {width} pixels with padding", fontsize=10
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    for axes, normalised, target in zip(grid, batch.tensors, resized, strict=False):
        pixels = (normalised * std + mean).clamp(0, 1)  # [3, H, W]; padding has the mean colour
        masks = torch.zeros(len(target["labels"]), height, width, dtype=torch.bool)
        if "masks" in target:
            own = target["masks"]
            masks[:, : own.shape[1], : own.shape[2]] = own > 0
        draw_objects(
            axes,
            (pixels * 255).byte().permute(1, 2, 0).numpy(),
            Drawn(target["boxes"].numpy(), target["labels"].tolist(), list(masks.numpy())),
            names,
        )
        axes.set_title(short(target.get("file_name", ""), 34 * 3 // (columns + 1)), fontsize=7)
    return figure
