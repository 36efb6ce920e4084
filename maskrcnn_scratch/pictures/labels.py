"""``labels.png``: classes, sizes and positions of the objects, and their fit to the anchors."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from maskrcnn_scratch.dataset_check.model_fit import ModelFit
from maskrcnn_scratch.dataset_check.report import Objects
from maskrcnn_scratch.pictures.style import BLUE, bars, message, most_common, plain, short

BINS = 50  # at most
TICKS = [digit * 10**power for power in range(5) for digit in (1, 2, 3, 5, 7)]


def labels_figure(
    objects: Objects, class_names: list[str], title: str, fit: ModelFit | None = None
) -> Figure:
    """The statistics of a data set's objects.

    Args:
        objects: from the dataset check. There may be none.
        class_names: all classes, also those without objects.
        fit: adds the fit to the model's anchors and pyramid levels.
    """
    rows = 3 if fit else 2
    figure = Figure(figsize=(11, 3.7 * rows + 0.5), layout="constrained")
    shown = f"{len(objects.names):,} objects in {len(objects.per_image):,} images"
    figure.suptitle(f"{short(title, 70)}\n{shown}", fontsize=11)
    grid = figure.subplots(rows, 2)
    draw_classes(grid[0, 0], objects.names, class_names)
    draw_per_image(grid[0, 1], objects.per_image)
    if objects.names:
        draw_sizes(grid[1, 0], objects)
        draw_positions(grid[1, 1], objects)
    else:
        for axes in grid[1]:
            message(axes, "no objects")
    if fit:
        bars(grid[2, 0], fit.anchor_iou_histogram, "IoU with the best anchor")
        bars(grid[2, 1], fit.roi_levels, "pyramid level that features are pooled from")
    return figure


def draw_classes(axes: Any, names: list[str], class_names: list[str]) -> None:
    """Objects of each class, the most frequent first."""
    found = Counter(names)
    counts = {name: found.get(name, 0) for name in dict.fromkeys([*class_names, *found])}
    shown, left_out = most_common(counts)
    few = len(shown) <= 12
    axes.barh(range(len(shown)), shown.values(), color=BLUE, height=0.75)
    size = 8 if few else max(6.5, 9 - len(shown) / 10)
    axes.set_yticks(range(len(shown)), [short(name, 22) for name in shown], fontsize=size)
    axes.invert_yaxis()
    for position, count in enumerate(shown.values()):
        axes.annotate(
            f"{count:,}", (count, position), xytext=(2, 0), textcoords="offset points",
            va="center", fontsize=size,
        )  # fmt: skip
    axes.margins(x=0.12, y=0.01 if not few else 0.05)
    more = f" ({left_out} more classes are not shown)" if left_out else ""
    axes.set_title(f"objects per class{more}", fontsize=10)
    plain(axes)
    axes.tick_params(axis="y", labelsize=size)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def draw_per_image(axes: Any, per_image: list[int]) -> None:
    """Images by their number of objects."""
    most = max(per_image, default=0)
    width = max(1, math.ceil((most + 1) / BINS))
    edges = [width * i - 0.5 for i in range(math.ceil((most + 1) / width) + 1)]
    axes.hist(per_image, edges, color=BLUE, rwidth=0.9)
    axes.set_title(f"objects per image, at most {most:,}", fontsize=10)
    axes.set_ylabel("images", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    plain(axes)


def bins(objects: Objects) -> int:
    """Bins per axis, so that they are not too sparse."""
    return min(BINS, max(10, math.isqrt(len(objects.names))))


def draw_sizes(axes: Any, objects: Objects) -> None:
    """Width and height of the boxes in pixels, on logarithmic axes."""
    sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).clamp(min=0.5)  # [G, 2]
    low, high = sides.min().item() * 0.9, sides.max().item() * 1.1
    edges = torch.logspace(math.log10(low), math.log10(high), bins(objects) + 1).tolist()
    widths, heights = sides.unbind(1)
    axes.hist2d(widths.tolist(), heights.tolist(), [edges, edges], cmap="viridis", norm=LogNorm())
    axes.set(xscale="log", yscale="log", facecolor="#f4f4f4")
    axes.plot([low, high], [low, high], color="white", linewidth=0.8)
    for axis, name in ((axes.xaxis, "width"), (axes.yaxis, "height")):
        ticks = [tick for tick in TICKS if low <= tick <= high]
        ticks = ticks[:: 1 + len(ticks) // 12]
        axis.set_ticks(ticks, [str(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
        axis.set_label_text(f"{name} in pixels", fontsize=9)
    axes.set_title("size of the boxes", fontsize=10)
    plain(axes)


def draw_positions(axes: Any, objects: Objects) -> None:
    """Centres of the boxes, relative to their image."""
    centres = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2 / objects.image_sizes.flip(1)
    columns, rows = centres.clamp(0, 1).unbind(1)
    number = bins(objects)
    unit = [i / number for i in range(number + 1)]
    axes.hist2d(columns.tolist(), rows.tolist(), [unit, unit], cmap="viridis", norm=LogNorm())
    axes.invert_yaxis()
    axes.set_facecolor("#f4f4f4")
    axes.set_xlabel("x / image width", fontsize=9)
    axes.set_ylabel("y / image height", fontsize=9)
    axes.set_title("centres of the boxes", fontsize=10)
    plain(axes)
