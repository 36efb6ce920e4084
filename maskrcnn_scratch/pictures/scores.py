"""``confusion_matrix.png`` and ``pr_curve.png``: what a model confuses, and its precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from maskrcnn_scratch.evaluation.coco_ap import CocoScore, IouType
from maskrcnn_scratch.pictures.style import BLUE, GREY, message, plain, short

MOST_CLASSES = 81  # rows of the matrix
MOST_CURVES = 10  # with a name and a colour
TITLES = {"bbox": "boxes", "segm": "masks"}


def confusion_figure(matrix: Sequence[Sequence[int]], names: Sequence[str], title: str) -> Figure:
    """The confusion matrix; each row is divided by its sum.

    Of more than 81 classes, those with the most mistakes are shown.

    Args:
        matrix: counts, a row per true class and a column per detected one, background last.
        names: names of rows and columns.
    """
    counts = np.array(matrix, np.float64).reshape(len(names), len(names))  # [C, C]
    left_out = ""
    if len(names) > MOST_CLASSES:
        mistakes = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        mistakes[-1] = np.inf  # background stays
        chosen = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES])
        counts, names = counts[chosen][:, chosen], [names[i] for i in chosen]
        left_out = f" ({MOST_CLASSES - 1} classes with the most mistakes)"
    number = len(names)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(10, 9.4), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    figure.colorbar(picture, ax=axes, label="share of the row", fraction=0.035)
    axes.set_title(f"{title}{left_out}", fontsize=11)
    size = 10 if number <= 12 else max(6, 10 - number / 14)
    labels = [short(name, 22) for name in names]
    axes.set_yticks(range(number), labels, fontsize=size)
    rotation = 45 if number <= 12 else 90
    axes.set_xticks(range(number), labels, fontsize=size, rotation=rotation,
                    ha="right" if rotation == 45 else "center", rotation_mode="anchor"
                    if rotation == 45 else "default")  # fmt: skip
    axes.set_ylabel("true class; background: nothing is there")
    axes.set_xlabel("detected class; background: missed")
    if number <= 16:
        for row, column in np.ndindex(number, number):
            if counts[row, column]:
                axes.text(
                    column, row, f"{int(counts[row, column]):,}", ha="center", va="center",
                    fontsize=size, color="white" if shares[row, column] > 0.35 else "black",
                )  # fmt: skip
    return figure


def precision_figure(scores: Mapping[IouType, CocoScore]) -> Figure:
    """Precision over recall at IoU 0.5: each class, and the mean over classes.

    Args:
        scores: by IoU type, with ``precision_recall``.
    """
    figure = Figure(figsize=(5.6 * max(len(scores), 1) + 1, 5.4), layout="constrained")
    for axes, (kind, score) in zip(
        figure.subplots(1, max(len(scores), 1), squeeze=False)[0], scores.items(), strict=False
    ):
        draw_precision(axes, score.precision_recall or {}, f"{TITLES[kind]}, IoU 0.5")
    return figure


def draw_precision(axes: Any, curves: Mapping[str, Any], title: str) -> None:
    """The curves of one IoU type; see ``CocoScore.precision_recall``."""
    axes.set_title(title, fontsize=10)
    precision = {name: np.array(values) for name, values in curves.get("precision", {}).items()}
    if not precision:
        message(axes, "no objects")
        return
    recall = curves["recall"]
    named = len(precision) <= MOST_CURVES
    for name, values in precision.items():
        look = {"lw": 1.2} if named else {"lw": 0.6, "color": GREY, "alpha": 0.5}
        label = f"{short(name, 22)}  {values.mean():.3f}" if named else None
        axes.plot(recall, values, label=label, **look)
    if len(precision) == 1:
        axes.lines[0].set(color=BLUE, lw=2.8)
    mean = np.mean(list(precision.values()), 0)
    if len(precision) > 1:
        label = f"mean of {len(precision)} classes  {mean.mean():.3f}"
        axes.plot(recall, mean, color="black", lw=2.2, ls="--", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    axes.set_xlabel("recall", fontsize=9)
    axes.set_ylabel("precision", fontsize=9)
    axes.grid(alpha=0.3)
    plain(axes)
    axes.legend(fontsize=7, title="class, AP50", title_fontsize=7, loc="lower left")
