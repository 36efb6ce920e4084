"""Matching the detections of two models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Results = Sequence[dict[str, Tensor]]


def assert_same_detections(
    ours: Results,
    theirs: Results,
    *,
    boxes: float = 1e-2,
    scores: float = 1e-5,
    masks: float = 1e-4,
    subpixel: bool = False,
) -> None:
    """Each detection has a counterpart with the same label, within these tolerances.

    Args:
        subpixel: masks were pasted without rounding their boxes. If boxes differ by some pixels,
            masks may differ by as much as they change over that distance: up to ``M / side`` per
            pixel.
    """
    assert len(ours) == len(theirs)
    for mine, their in zip(ours, theirs, strict=True):
        assert mine.keys() == their.keys()
        assert len(mine["labels"]) == len(their["labels"]) > 0
        distance = torch.cdist(mine["boxes"].double(), their["boxes"].double(), p=torch.inf)
        distance += 1e6 * (mine["labels"][:, None] != their["labels"])  # [D, D]
        match = distance.argmin(dim=1)
        assert len(set(match.tolist())) == len(match), "two detections have the same counterpart"
        assert float(distance.amin(dim=1).max()) <= boxes
        assert float((mine["scores"] - their["scores"][match]).abs().max()) <= scores
        if "masks" in mine:
            slope = 28 / (mine["boxes"][:, 2:] - mine["boxes"][:, :2]).amin(dim=1)  # [D]
            allowed = masks + (distance.amin(dim=1) * slope if subpixel else 0.0)
            difference = (mine["masks"] - their["masks"][match]).abs()  # [D, 1, H, W]
            assert bool((difference.flatten(1).amax(dim=1) <= allowed).all())
