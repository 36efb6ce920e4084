"""Checks of a backbone. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.component_check.common import network_checks, require_finite, require_tensor
from maskrcnn_scratch.component_check.host import SmallBackbone, model_around
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import Subject, noise, shapes


def plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.Backbone``."""
    side = subject.setting.side
    images = noise(3, 3, side, 2 * side)
    return Plan(
        checks=_checks(subject, images),
        model_with=lambda part: model_around(subject.setting, backbone=part),
        default=lambda: SmallBackbone(subject.setting.channels).eval(),
        call=lambda part: part(images.clone()),
    )


def _checks(subject: Subject, images: Tensor) -> Iterator[CheckResult]:
    part, side = subject.part, subject.setting.side
    yield outcome("types and shapes", lambda: types_and_shapes(part, side))
    yield outcome("order of levels", lambda: finest_first(part, images.clone()))
    yield outcome("black images", lambda: black_images(part, images))
    yield from network_checks(subject, images)


@torch.no_grad()
def types_and_shapes(part: Any, side: int) -> str:
    """Several sizes, batches of 1 and 3. The largest gives the strides."""
    channels = getattr(part, "out_channels", None)
    require(
        isinstance(channels, int), f"out_channels is {channels!r}, expected the number of channels"
    )
    strides: dict[str, float] = {}
    large = 2 * side
    for batch, height, width in ((1, large, large), (1, side, side), (3, side, large)):
        images = noise(batch, 3, height, width)
        maps = part(images)
        require(isinstance(maps, (dict, Tensor)), f"returns {shapes(maps)}, not a dict of maps")
        if isinstance(maps, Tensor):
            maps = {"0": maps}
        require(len(maps) > 0, "returns no feature map")
        for name, level in maps.items():
            what = f"feature map {name!r} of images {list(images.shape)}"
            require_tensor(level, what, (batch, channels, None, None))
            require(level.numel() > 0, f"{what} is empty: {list(level.shape)}")
            stride = strides.setdefault(name, large / level.shape[2])
            expected = height / stride, width / stride
            require(
                max(abs(level.shape[2] - expected[0]), abs(level.shape[3] - expected[1])) <= 1,
                f"{what} is {list(level.shape[2:])}; a stride of {stride:.0f}, as at another size, "
                f"gives [{expected[0]:.1f}, {expected[1]:.1f}]",
            )
        require(
            list(maps) == list(strides), f"levels {list(maps)}, at another size {list(strides)}"
        )
    shown = ", ".join(f"{name!r}: {stride:.0f}" for name, stride in strides.items())
    odd = [stride for stride in strides.values() if round(stride).bit_count() != 1]
    hint = "; not all are powers of two: give MultiScaleRoIAlign scales" if odd else ""
    return f"{channels} channels, strides {shown}{hint}"


@torch.no_grad()
def finest_first(part: Any, images: Tensor) -> str:
    """The RPN and the poolers take the levels in the order of the dict."""
    maps = part(images)
    if isinstance(maps, Tensor):
        return "one level"
    sizes = {name: tuple(level.shape[-2:]) for name, level in maps.items()}
    heights = list(sizes.values())
    require(heights == sorted(heights, reverse=True), f"sizes are {sizes}: the finest comes first")
    return f"sizes {list(sizes.values())}"


@torch.no_grad()
def black_images(part: Any, images: Tensor) -> str:
    require_finite(part(torch.zeros_like(images)), "black images")
    return "finite"
