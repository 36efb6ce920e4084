"""Checks of an anchor generator. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.component_check.common import part_checks, require_finite, require_tensor
from maskrcnn_scratch.component_check.host import default_anchor_generator, model_around
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import Subject, shapes
from maskrcnn_scratch.structures import ImageList

FIRST_STRIDE = 4  # pixels, of the finest map; each level doubles it


def plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.AnchorGenerator``."""
    setting = subject.setting

    def call(part: Any) -> Any:
        return part(*inputs(len(part.num_anchors_per_location()), setting.side, 1))

    return Plan(
        checks=_checks(subject, call),
        model_with=lambda part: model_around(setting, anchor_generator=part),
        default=lambda: default_anchor_generator(
            setting, len(subject.part.num_anchors_per_location())
        ),
        call=call,
    )


def _checks(subject: Subject, call: Any) -> Iterator[CheckResult]:
    part, side = subject.part, subject.setting.side
    yield outcome("types and shapes", lambda: types_and_shapes(part, side))
    yield outcome("value range", lambda: boxes_with_area(part, side))
    yield outcome("order of anchors", lambda: order(part, side))
    yield outcome("bf16 feature maps", lambda: bf16_maps(part, side))
    yield from part_checks(subject, call)


def inputs(
    levels: int, side: int, batch: int, dtype: torch.dtype = torch.float32
) -> tuple[ImageList, list[Tensor]]:
    """Images ``[batch, 3, side, 2 * side]`` (padded to the coarsest stride), and maps."""
    coarsest = FIRST_STRIDE * 2 ** (levels - 1)
    height, width = (-(-length // coarsest) * coarsest for length in (side, 2 * side))
    images = ImageList(
        torch.zeros(batch, 3, height, width), torch.tensor([[height, width]]).repeat(batch, 1)
    )
    strides = [FIRST_STRIDE * 2**level for level in range(levels)]
    maps = [torch.zeros(batch, 1, height // s, width // s, dtype=dtype) for s in strides]
    return images, maps


def types_and_shapes(part: Any, side: int) -> str:
    """Two sizes, batches of 1 and 3."""
    counts = part.num_anchors_per_location()
    require(
        isinstance(counts, (list, tuple)) and all(isinstance(a, int) and a > 0 for a in counts),
        f"num_anchors_per_location() is {counts!r}, expected a positive number for each level",
    )
    found = []
    for batch, length in ((1, side), (3, side), (1, 2 * side)):
        images, maps = inputs(len(counts), length, batch)
        anchors = part(images, maps)
        require(
            isinstance(anchors, (list, tuple)) and len(anchors) == batch,
            f"{batch} images give {shapes(anchors)}, expected one tensor per image",
        )
        cells = [level.shape[2] * level.shape[3] for level in maps]
        total = sum(a * n for a, n in zip(counts, cells, strict=True))
        for n, of_image in enumerate(anchors):
            require_tensor(
                of_image,
                f"anchors of image {n} for maps of {cells} locations with {list(counts)} anchors",
                (total, 4),
            )
            require(
                torch.equal(of_image, anchors[0]),
                f"anchors of image {n} differ from those of image 0",
            )
        found.append(total)
    return f"{list(counts)} anchors per location, {found} anchors in all"


def boxes_with_area(part: Any, side: int) -> str:
    anchors = part(*inputs(len(part.num_anchors_per_location()), side, 1))[0]
    require_finite(anchors, "anchors")
    sizes = anchors[:, 2:] - anchors[:, :2]
    require(
        bool((sizes > 0).all()),
        f"the smallest anchor is {sizes[:, 0].min():.3g} x {sizes[:, 1].min():.3g} pixels",
    )
    return f"sides from {sizes.min():.3g} to {sizes.max():.3g} pixels"


def order(part: Any, side: int) -> str:
    """By level, row, column, anchor: as the RPN head's outputs are flattened."""
    counts = part.num_anchors_per_location()
    images, maps = inputs(len(counts), side, 1)
    anchors = part(images, maps)[0]
    sizes = [a * level.shape[2] * level.shape[3] for a, level in zip(counts, maps, strict=True)]
    for level, of_level in enumerate(anchors.split(sizes)):
        height, width = maps[level].shape[-2:]
        stride = images.tensors.shape[-2] // height
        centres = ((of_level[:, :2] + of_level[:, 2:]) / 2).reshape(height, width, -1, 2).mean(2)
        for axis, name in ((1, "column"), (0, "row")):
            steps = centres.diff(dim=axis)  # (x, y) of the next minus this one
            expected = torch.zeros_like(steps)
            expected[..., 1 - axis] = stride
            # Rounding and offsets within a cell are free; another order is off by a stride.
            wrong = (steps - expected).abs() > 0.75 * stride
            require(
                not bool(wrong.any()),
                f"level {level}: the next {name} is {steps[wrong.any(-1)][:1].tolist()} pixels "
                f"(x, y) away, expected {stride} in one direction",
            )
    return "by level, row, column, anchor"


def bf16_maps(part: Any, side: int) -> str:
    """The anchors have the images' dtype: bfloat16 has no odd coordinates above 256."""
    images, maps = inputs(len(part.num_anchors_per_location()), side, 1, torch.bfloat16)
    anchors = part(images, maps)[0]
    require(anchors.dtype == torch.float32, f"anchors are {anchors.dtype} for float32 images")
    return "anchors stay float32"
