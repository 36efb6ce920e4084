"""What all pictures share: colours, short names, and bar charts of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

BLUE, ORANGE, GREY = "#2a6fb0", "#d9662b", "#8a8a8a"
# Distinct on photographs, and light enough for black text.
COLORS = (
    "#ffb800", "#00c8ff", "#ff5c5c", "#60e060", "#e278ff", "#ff8020",
    "#50a0ff", "#c8eb28", "#ff78be", "#28dcb4", "#b296ff", "#ffec00",
)  # fmt: skip
MOST_BARS = 30


def short(text: object, length: int = 24) -> str:
    """The text, shortened in the middle if it is longer than ``length``.

    Dollar signs, which matplotlib would read as formulas, are escaped.
    """
    name = str(text)
    if len(name) > length:
        tail = (length - 1) // 2
        name = f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"
    return name.replace("$", r"\$")


def class_color(label: int) -> str:
    """The colour of a class."""
    return COLORS[label % len(COLORS)]


def bars(axes: Any, counts: Mapping[str, int], title: str, unit: str = "objects") -> None:
    """Vertical bars with their numbers; for a few values."""
    axes.bar(range(len(counts)), counts.values(), color=BLUE, width=0.75)
    axes.set_xticks(range(len(counts)), [short(name, 12) for name in counts])
    for position, count in enumerate(counts.values()):
        axes.annotate(
            f"{count:,}", (position, count), xytext=(0, 2), textcoords="offset points",
            ha="center", fontsize=8,
        )  # fmt: skip
    axes.margins(y=0.12)
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit, fontsize=9)
    plain(axes)


def plain(axes: Any) -> None:
    """Small ticks, and no frame on top and right."""
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def message(axes: Any, text: str) -> None:
    """A text instead of a chart that has no data."""
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)
    axes.set_axis_off()


def most_common(counts: Mapping[str, int], most: int = MOST_BARS) -> tuple[dict[str, int], int]:
    """The ``most`` highest counts, and how many other counts there are."""
    ordered: Iterable[tuple[str, int]] = sorted(counts.items(), key=lambda item: -item[1])
    shown = dict(list(ordered)[:most])
    return shown, len(counts) - len(shown)
