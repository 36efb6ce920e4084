"""Random inputs that the tests of the operators share."""

from __future__ import annotations

import torch
from torch import Tensor


def random_rois(count: int, images: int, height: int, width: int, seed: int = 0) -> Tensor:
    """``[count, 5]``: boxes of all sizes in and around images of (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    centre = torch.rand(count, 2, generator=generator) * size
    half = torch.rand(count, 2, generator=generator) ** 2 * size * 0.6
    index = torch.randint(images, (count, 1), generator=generator).float()
    return torch.cat([index, centre - half, centre + half], dim=1)


def random_boxes(count: int, side: float, extent: float, seed: int = 0) -> Tensor:
    """``[count, 4]``: boxes with sides up to ``side``, corners in ``[0, extent]``."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * extent
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * side], dim=1)


def random_scores(count: int, levels: int | None = None, seed: int = 1) -> Tensor:
    """``[count]`` in [0, 1], of ``levels`` different values (many ties) if given."""
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return scores if levels is None else (scores * levels).floor() / levels


def rows_in_tables(*values: Tensor) -> list[Tensor]:
    """For each of ``values [N, K, 4]`` a table ``[N, K + 3, 4]`` and int64 indices ``[N, K]``.

    The rows of a table have another order, and three of them, which no index names, are NaN.
    """
    arguments = []
    for seed, rows in enumerate(values):
        images, count, _ = rows.shape
        generator = torch.Generator().manual_seed(seed)
        order = [torch.randperm(count + 3, generator=generator)[:count] for _ in range(images)]
        indices = torch.stack(order) if order else torch.empty(0, count, dtype=torch.int64)
        table = rows.new_full((images, count + 3, 4), torch.nan)
        arguments += [table.scatter(1, indices[..., None].expand(-1, -1, 4), rows), indices]
    return arguments
