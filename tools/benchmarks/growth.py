"""How the time grows with the size of the problem, as tables and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_scratch import ops
from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
from maskrcnn_scratch.parity.reference import reference_of
from tools.benchmarks.clock import Clock, Timing

PROPOSALS = (100, 300, 1000, 3000, 10_000)
BOXES = (1000, 3000, 10_000, 30_000, 100_000)
DETECTIONS = (1, 10, 100, 1000)
BATCHES = (1, 2, 4, 8)
SIDES = (320, 640, 1280, 2000)


@torch.no_grad()
def time_growth(clock: Clock, image: Tensor) -> Iterator[Timing]:
    """The series ``growth: what, number``; ``image [3, H, W]`` is the input of the model."""
    generator = torch.Generator().manual_seed(0)
    clock = Clock(clock.device, clock.seconds / 4, least=1)
    features = torch.randn(1, 256, 200, 300, generator=generator).to(clock.device)
    ours = features.contiguous(memory_format=torch.channels_last)
    for count in PROPOSALS:
        rois = torch.nn.functional.pad(random_boxes(count, 1200, generator), (1, 0)).to(features)
        yield clock.pair(
            "growth", f"RoIAlign, proposals: {count}",
            partial(ops.roi_align, ours, rois, 7, 0.25, 2),
            partial(torchvision.ops.roi_align, features, rois, 7, 0.25, 2),
        )  # fmt: skip
    for count in BOXES:  # density does not depend on the number
        boxes = random_boxes(count, 25 * count**0.5, generator).to(features)
        scores = torch.rand(count, generator=generator).to(features)
        yield clock.pair(
            "growth", f"NMS, boxes: {count}",
            partial(ops.nms, boxes, scores, 0.5),
            partial(torchvision.ops.nms, boxes, scores, 0.5),
        )  # fmt: skip
    for count in DETECTIONS:
        masks = torch.rand(count, 1, 28, 28, generator=generator).to(features)
        boxes = random_boxes(count, 800, generator).to(features)
        yield clock.pair(
            "growth", f"paste to 800 x 1200, detections: {count}",
            partial(ops.paste_masks, masks, boxes, (800, 1200)),
            partial(paste_masks_in_image, masks, boxes, (800, 1200)),
        )  # fmt: skip
    for count in BATCHES:
        yield time_model(clock, image, f"images of 320 pixels: {count}", count, 320)
    for side in SIDES:
        yield time_model(clock, image, f"shorter side in pixels: {side}", 1, side)


def time_model(clock: Clock, image: Tensor, name: str, count: int, side: int) -> Timing:
    model = calibrated_maskrcnn(0, image.cpu(), min_size=side, max_size=2 * side).to(clock.device)
    reference, batch = reference_of(model), [image.to(clock.device)] * count
    timing = clock.pair("growth", name, lambda: model(batch), lambda: reference(batch))
    return replace(timing, name=f"complete model, {timing.name}")


def random_boxes(count: int, extent: float, generator: torch.Generator) -> Tensor:
    """``[count, 4]``, sides of 20 to 120 pixels, in a square of ``extent``."""
    corner = torch.rand(count, 2, generator=generator) * max(extent - 120, 1)
    side = 20 + 100 * torch.rand(count, 2, generator=generator)
    return torch.cat((corner, corner + side), dim=1)


def plot(timings: Sequence[Timing], path: Path) -> None:
    """Draws the series of ``time_growth``, both axes logarithmic."""
    from matplotlib.figure import Figure

    series: dict[str, list[Timing]] = {}
    for timing in timings:
        series.setdefault(timing.name.rpartition(": ")[0], []).append(timing)
    figure = Figure(figsize=(4 * len(series), 3.4), layout="constrained")
    axes = figure.subplots(1, len(series), squeeze=False)[0]
    for axis, (name, points) in zip(axes, series.items(), strict=True):
        numbers = [int(point.name.rpartition(": ")[2]) for point in points]
        axis.loglog(numbers, [p.theirs for p in points], "o-", color="0.6", label="torchvision")
        axis.loglog(numbers, [p.ours for p in points], "o-", color="C0", label="ours")
        what, _, unit = name.rpartition(", ")
        axis.set(title=what, xlabel=unit, ylabel="milliseconds", xticks=numbers)
        axis.set_xticklabels([f"{n // 1000}k" if n % 1000 == 0 else str(n) for n in numbers])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
