"""Checks of an RoI pooler. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.component_check.common import (
    TOLERANCE,
    part_checks,
    require_finite,
    require_tensor,
)
from maskrcnn_scratch.component_check.host import (
    LEVELS,
    POOLED_LEVELS,
    default_pool,
    feature_maps,
    model_around,
    padded_size,
)
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import (
    Setting,
    Subject,
    map_tensors,
    random_boxes,
    relative_error,
)

ROIS_PER_IMAGE = 8


def plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.RoIPooler``."""
    setting = subject.setting
    maps = feature_maps(setting)
    rois = example_rois(setting)

    def call(part: Any) -> Any:
        return part(maps, rois, [padded_size(setting)])

    return Plan(
        checks=_checks(subject, maps, rois, call),
        model_with=lambda part: model_around(setting, roi_pool=part),
        default=lambda: default_pool(LEVELS[:POOLED_LEVELS], subject.part.output_size[0]),
        call=call,
    )


def example_rois(setting: Setting) -> Tensor:
    """``[3 * ROIS_PER_IMAGE, 5]``: (image index, x1, y1, x2, y2), the image indices mixed."""
    boxes = random_boxes(3 * ROIS_PER_IMAGE, setting.side)
    index = torch.arange(len(boxes)) % 3
    return torch.cat((index[:, None].to(boxes.dtype), boxes), dim=1)


def _checks(
    subject: Subject, maps: dict[str, Tensor], rois: Tensor, call: Any
) -> Iterator[CheckResult]:
    part, size = subject.part, padded_size(subject.setting)
    yield outcome("types and shapes", lambda: types_and_shapes(part, maps, rois, size))
    yield outcome("order of RoIs", lambda: order(part, maps, rois, size))
    yield outcome("list of boxes", lambda: list_of_boxes(part, maps, rois, size))
    yield outcome("no RoIs", lambda: no_rois(part, maps, rois, size))
    yield outcome("values", lambda: ramps(part, maps, size))
    yield outcome("RoIs outside, without area", lambda: degenerate(part, maps, size))
    yield outcome("bf16 features, float32 RoIs", lambda: bf16(part, maps, rois, size))
    yield outcome("gradient", lambda: gradient(part, maps, rois, size))
    yield outcome("channels-last", lambda: channels_last(part, maps, rois, size))
    yield from part_checks(
        subject,
        lambda part, maps, rois: part(maps, rois, [size]),
        feature_maps(subject.setting),
        example_rois(subject.setting),
    )


@torch.no_grad()
def types_and_shapes(
    part: Any, maps: dict[str, Tensor], rois: Tensor, size: tuple[int, int]
) -> str:
    output_size = getattr(part, "output_size", None)
    require(
        isinstance(output_size, (tuple, list)) and len(output_size) == 2,
        f"output_size is {output_size!r}, expected (height, width)",
    )
    assert output_size is not None
    channels = next(iter(maps.values())).shape[1]
    for some in (rois, rois[:1]):
        require_tensor(part(maps, some, [size]), "output", (len(some), channels, *output_size))
    require_finite(part(maps, rois, [size]), "output")
    return f"[R, {channels}, {output_size[0]}, {output_size[1]}]"


@torch.no_grad()
def order(part: Any, maps: dict[str, Tensor], rois: Tensor, size: tuple[int, int]) -> str:
    """The output has the order of the RoIs, and each is cut from its own image."""
    pooled = part(maps, rois, [size])
    require_close(part(maps, rois.flip(0), [size]).flip(0), pooled, "RoIs in reverse order")
    for n in range(3):
        of_image = rois[:, 0] == n
        alone = rois[of_image].clone()
        alone[:, 0] = 0
        own = {name: level[n : n + 1] for name, level in maps.items()}
        require_close(part(own, alone, [size]), pooled[of_image], f"image {n} alone")
    return "as the RoIs, from their images"


@torch.no_grad()
def list_of_boxes(part: Any, maps: dict[str, Tensor], rois: Tensor, size: tuple[int, int]) -> str:
    """Boxes per image, as torchvision passes them."""
    by_image = [rois[rois[:, 0] == n] for n in range(3)]
    expected = part(maps, torch.cat(by_image), [size])
    found = part(maps, [boxes[:, 1:] for boxes in by_image], [size])
    require_close(found, expected, "a list of boxes per image")
    return "as RoIs [R, 5]"


@torch.no_grad()
def no_rois(part: Any, maps: dict[str, Tensor], rois: Tensor, size: tuple[int, int]) -> str:
    expected = part(maps, rois, [size]).shape[1:]
    require_tensor(part(maps, rois[:0], [size]), "output for no RoIs", (0, *expected))
    return f"[0, {', '.join(map(str, expected))}]"


@torch.no_grad()
def ramps(part: Any, maps: dict[str, Tensor], size: tuple[int, int]) -> str:
    """On maps that hold x (then y) in pixels, the mean of a RoI is the centre of its box."""
    height, width = size
    boxes = torch.tensor([[0, 0.25, 0.25, 0.5, 0.75], [0, 0.5, 0.125, 0.75, 0.375]]) * torch.tensor(
        [1, width, height, width, height]
    )
    coarsest = 0.0
    errors = []
    for axis, name in ((0, "x"), (1, "y")):
        ramp = {}
        for level_name, level in maps.items():
            rows, columns = level.shape[-2:]
            strides = width / columns, height / rows
            coarsest = max(coarsest, *strides) if level_name in LEVELS[:POOLED_LEVELS] else coarsest
            steps = torch.arange(columns if axis == 0 else rows) + 0.5
            values = steps * strides[axis]
            values = values[None, :] if axis == 0 else values[:, None]
            ramp[level_name] = values.expand(1, 1, rows, columns).contiguous()
        pooled = part(ramp, boxes, [size])[:, 0]  # [R, S, S]
        centre = (boxes[:, 1 + axis] + boxes[:, 3 + axis]) / 2
        error = float((pooled.mean((1, 2)) - centre).abs().max())
        require(
            error <= coarsest,
            f"on a map of {name}, the mean of a RoI is {error:.1f} pixels from the centre of its "
            f"box, allowed is one stride, {coarsest:.0f}",
        )
        along = pooled.diff(dim=2 if axis == 0 else 1)
        require(
            bool((along >= -1e-3).all()),
            f"on a map of {name}, the bins do not ascend along {name}",
        )
        errors.append(error)
    return f"centres within {max(errors):.1f} pixels"


@torch.no_grad()
def degenerate(part: Any, maps: dict[str, Tensor], size: tuple[int, int]) -> str:
    """Padded entries of the model are RoIs of zeros."""
    height, width = size
    rois = torch.tensor(
        [
            [0.0, 0, 0, 0, 0],
            [0, 5, 5, 5, 9],
            [0, width - 1, height - 1, width, height],
            [0, 0, 0, width, height],
        ]
    )
    require_finite(part(maps, rois, [size]), "RoIs without area or at the border")
    return "finite"


@torch.no_grad()
def bf16(part: Any, maps: dict[str, Tensor], rois: Tensor, size: tuple[int, int]) -> str:
    half: Any = map_tensors(Tensor.bfloat16, maps)
    pooled, expected = part(half, rois, [size]), part(maps, rois, [size])
    error = relative_error(pooled, expected)
    require(error <= 0.02, f"differs by {error:.1e} of its norm from float32, allowed 2e-02")
    return f"{pooled.dtype}, differs by {error:.0e} of its norm from float32"


def gradient(part: Any, maps: dict[str, Tensor], rois: Tensor, size: tuple[int, int]) -> str:
    leaves: Any = map_tensors(lambda tensor: tensor.clone().requires_grad_(), maps)
    part(leaves, rois, [size]).square().sum().backward()
    reached = [name for name, leaf in leaves.items() if leaf.grad is not None and leaf.grad.any()]
    require(bool(reached), "no gradient reaches the feature maps")
    for name in reached:
        require_finite(leaves[name].grad, f"the gradient of feature map {name!r}")
    return f"reaches feature maps {', '.join(reached)}"


@torch.no_grad()
def channels_last(part: Any, maps: dict[str, Tensor], rois: Tensor, size: tuple[int, int]) -> str:
    other: Any = map_tensors(lambda x: x.contiguous(memory_format=torch.channels_last), maps)
    require_close(part(other, rois, [size]), part(maps, rois, [size]), "channels-last maps")
    return "as contiguous"


def require_close(found: Tensor, expected: Tensor, what: str) -> None:
    require(found.shape == expected.shape, f"{what}: {list(found.shape)} {list(expected.shape)}")
    error = relative_error(found, expected)
    require(error <= TOLERANCE, f"{what}: the output differs by {error:.1e} of its norm")
