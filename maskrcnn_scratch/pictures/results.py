"""``results.png``: losses, AP and learning rate over the steps, from ``log.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from maskrcnn_scratch.pictures.style import BLUE, GREY, ORANGE, message, plain

AP_COLORS = {"AP": BLUE, "AP50": ORANGE, "AP75": GREY}
Lines = Sequence[Mapping[str, float]]


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log; empty if there is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def results_figure(lines: Lines) -> Figure:
    """The curves of a run: total loss, each loss, AP and learning rate.

    Args:
        lines: of ``log.jsonl``: means of training steps, and validations.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    (total, parts), (metrics, rate) = figure.subplots(2, 2)
    names = list(dict.fromkeys(name for line in lines for name in line))
    losses = [name for name in names if name.startswith("loss_")]
    draw_curves(total, lines, {"loss": "training", "val/loss": "validation"}, "total loss")
    draw_curves(parts, lines, {n: n.removeprefix("loss_") for n in losses}, "training losses")
    if losses:
        parts.set_yscale("log")
    ap = [name for name in names if "/AP" in name]
    titles = {"bbox/": "boxes ", "segm/": "masks "}
    shown = {name: titles.get(name[:5], name[:5]) + name[5:] for name in ap}
    draw_curves(metrics, lines, shown, "average precision on the validation set")
    if ap:
        metrics.set_ylim(bottom=0)
    draw_curves(rate, lines, {"learning_rate": ""}, "learning rate")
    return figure


def draw_curves(axes: Any, lines: Lines, names: Mapping[str, str], title: str) -> None:
    """The values of these keys over the steps; ``names`` has their names in the legend."""
    axes.set_title(title, fontsize=10)
    found = False
    for key, name in names.items():
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            found = True
            marker = "o" if len(points) < 30 else ""
            # Boxes and masks share the colour of a metric.
            look = {"color": AP_COLORS.get(key.partition("/")[2])} if "/AP" in key else {}
            dashed = "--" if key.startswith("bbox/") else "-"
            axes.plot(
                *zip(*points, strict=True), dashed, marker=marker, markersize=3, label=name, **look
            )
    if not found:
        message(axes, "no values yet")
        return
    axes.set_xlabel("step", fontsize=9)
    axes.grid(alpha=0.3)
    axes.set_xlim(0, 1.02 * max(line["step"] for line in lines))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    plain(axes)
    if any(names.values()):
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3,
                    frameon=False)  # fmt: skip
