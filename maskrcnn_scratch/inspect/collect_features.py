"""What the page shows of the feature maps and the anchors of each level.

Shapes: see ``structures``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.levels import AnchorLevel, anchor_levels
from maskrcnn_scratch.inspect.pictures import ColorBasis, color_basis, data_uri
from maskrcnn_scratch.structures import StageOutputs

MOST_CHANNELS = 64  # in the browser, those of the highest activation
TILE_SIDE = 160  # pixels of the longer side of a channel's picture
SHEET_COLUMNS = 8
PROBE_SIDE = 512  # pixels of the image of noise that the receptive field is measured on


def collect_levels(
    model: GeneralizedRCNN, stages: StageOutputs
) -> tuple[list[dict[str, Any]], dict[str, ColorBasis]]:
    """The levels as the page shows them, and how each level's features become colours."""
    known = anchor_levels(model, stages)
    fields = receptive_fields(model, stages)
    height, width = stages.images.padded_size
    levels, bases = [], {}
    for index, (name, maps) in enumerate(stages.features.items()):
        feature = maps[0].detach().float().cpu()  # [F, H_l, W_l]
        bases[name] = color_basis(feature)
        levels.append(
            {
                "name": name,
                "channels": feature.shape[0],
                "height": feature.shape[1],
                "width": feature.shape[2],
                "stride": [height / feature.shape[1], width / feature.shape[2]],
                "field": fields.get(name),
                "colors": data_uri(bases[name].colors(feature[None])[0], lossless=True),
                "sheet": _channel_sheet(feature),
                "anchors": None if known is None else _anchors(known[index], stages.anchors),
            }
        )
    return levels, bases


def _channel_sheet(feature: Tensor) -> dict[str, Any]:
    """The channels of ``[F, H, W]`` with the highest maximum of the absolute value, as tiles."""
    strength = feature.abs().nan_to_num(0.0).amax((1, 2))  # [F]
    order = strength.argsort(descending=True, stable=True)[:MOST_CHANNELS]
    chosen = feature[order].nan_to_num(0.0)
    scale = min(1.0, TILE_SIDE / max(chosen.shape[1:]))
    size = [max(1, round(side * scale)) for side in chosen.shape[1:]]
    tiles = F.interpolate(chosen[None], size=size, mode="area")[0]  # [n, h, w]
    low, high = tiles.amin((1, 2), keepdim=True), tiles.amax((1, 2), keepdim=True)
    grey = ((tiles - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).numpy()
    rows = -(-len(grey) // SHEET_COLUMNS)
    sheet = np.zeros((rows * size[0], SHEET_COLUMNS * size[1]), np.uint8)
    for index, tile in enumerate(grey):
        row, column = divmod(index, SHEET_COLUMNS)
        sheet[row * size[0] : (row + 1) * size[0], column * size[1] : (column + 1) * size[1]] = tile
    return {
        "source": data_uri(sheet, lossless=max(size) < 64),
        "columns": SHEET_COLUMNS,
        "tile": size,
        "channels": order.tolist(),
        "strengths": [round(value, 4) for value in strength[order].tolist()],
    }


def _anchors(level: AnchorLevel, anchors: Tensor) -> dict[str, Any] | None:
    """The level's anchors as base boxes and steps; None where they are not on a regular grid."""
    grid = anchors[level.first : level.first + level.size].float().cpu()
    grid = grid.reshape(level.height, level.width, level.per_location, 4)
    base = grid[0, 0]  # [a, 4]
    step_x = float(grid[0, 1, 0, 0] - base[0, 0]) if level.width > 1 else 0.0
    step_y = float(grid[1, 0, 0, 1] - base[0, 1]) if level.height > 1 else 0.0
    x = (torch.arange(level.width) * step_x)[None, :, None]
    y = (torch.arange(level.height) * step_y)[:, None, None]
    x, y = x.expand(level.height, -1, -1), y.expand(-1, level.width, -1)
    if not torch.allclose(grid, base + torch.stack((x, y, x, y), -1), atol=1e-2):
        return None
    return {
        "first": level.first,
        "count": level.per_location,
        "base": base.tolist(),
        "step": [step_y, step_x],
    }


def receptive_fields(model: GeneralizedRCNN, stages: StageOutputs) -> dict[str, list[float] | None]:
    """Pixels that one location of each level depends on: (left, top, right, bottom) of its centre.

    The gradient of the location in the middle of a probe of noise tells them. A side that reaches
    the end of the probe is None. A backbone without a gradient, or for other sizes, gives no entry.
    """
    batch = stages.images.tensors
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn((1, batch.shape[1], PROBE_SIDE, PROBE_SIDE), generator=generator)
    probe = probe.to(batch)
    fields: dict[str, list[float] | None] = {}
    try:
        with torch.enable_grad():
            maps = model.extract_features(probe.requires_grad_())
            for name, feature in maps.items():
                row, column = feature.shape[2] // 2, feature.shape[3] // 2
                (gradient,) = torch.autograd.grad(
                    feature[0, :, row, column].sum(), probe, retain_graph=True
                )
                touched = gradient[0].abs().sum(0) > 0  # [H, W]
                fields[name] = _extent(touched, row, column, (feature.shape[2], feature.shape[3]))
    except Exception:  # a swapped backbone may have no gradient, or want one size
        return {}
    return fields


def _extent(touched: Tensor, row: int, column: int, size: tuple[int, int]) -> Any:
    if not bool(touched.any()):
        return None
    height, width = touched.shape
    y = (row + 0.5) * height / size[0]
    x = (column + 0.5) * width / size[1]
    rows, columns = touched.any(1).nonzero().squeeze(1), touched.any(0).nonzero().squeeze(1)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    return [
        x - left if left > 0 else None,
        y - top if top > 0 else None,
        right - x if right < width else None,
        bottom - y if bottom < height else None,
    ]
