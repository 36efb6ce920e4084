"""The results of the parity checks as text and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from maskrcnn_scratch.parity.compare import Check
from maskrcnn_scratch.parity.names import PARTS, part_of, title_of

HEADER = f"{'':5}{'check':44}{'absolute':>10}{'relative':>10}  tolerance"
# What one row of the summary stands for where the title alone does not tell.
LABELS = {
    ("float64", "detections"): "complete model, undamped random weights",
    ("model", "detections"): "detections matched one to one",
}


def row(check: Check) -> str:
    """One line."""
    mark = "ok" if check.passed else "FAIL"
    text = (
        f"{mark:5}{check.level + ' ' + check.name:44}{check.absolute:10.1e}{check.relative:10.1e}"
    )
    text += f"  {check.tolerance}" + (f" ({check.note})" if check.note else "")
    return f"{text}  {check.change}".rstrip()


def summary(checks: Sequence[Check]) -> Iterator[tuple[str, str, str, str]]:
    """Group, part, largest error and tolerance, over all weights and images of each part.

    float64 comes first: it shows equality, where float32 shows rounding.
    """
    same: dict[tuple[str, str], list[Check]] = {}
    for check in sorted(checks, key=lambda check: check.level != "float64"):
        same.setdefault((check.level, title_of(check.level, check.name)), []).append(check)
    for (level, title), group in same.items():
        worst = max(group, key=lambda check: check.relative)
        if "relative" in worst.tolerance:
            error = f"{worst.relative:.0e} relative"
        else:
            worst = max(group, key=lambda check: check.absolute)
            error = f"{worst.absolute:.0e}"
        if any("detections," in check.note for check in group):
            error = "; ".join(check.note for check in group)
        elif not any(check.absolute for check in group):
            error = "0"
        yield level, LABELS.get((level, title), title), error, worst.tolerance


def markdown(checks: Sequence[Check]) -> str:
    """``summary`` as a Markdown table."""
    lines = ["| | compared | largest error | allowed |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(cells)} |" for cells in summary(checks)]
    return "\n".join(lines) + "\n"


def to_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """All fields of each check; null for infinite numbers, which JSON does not have."""
    return [_finite(asdict(check) | {"part": part_of(check.level, check.name)}) for check in checks]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def first_failed(checks: Sequence[Check]) -> Check | None:
    """The failed check that comes first in the order of ``names.PARTS``."""
    failed = [check for check in checks if not check.passed]
    return min(failed, key=lambda check: list(PARTS).index(check.level), default=None)


def divergence(check: Check) -> list[str]:
    """Where a failed check is worst: element, its two values, and what it was computed from."""
    lines = [f"first divergence: {check.level} {check.name}"]
    if check.note:
        lines.append(f"  {check.note}")
    if check.worst is not None:
        worst = check.worst
        lines.append(f"  worst element {worst.where}: {worst.ours!r}, torchvision {worst.theirs!r}")
        lines += [f"  {name}: {value}" for name, value in worst.inputs.items()]
    return lines


def verdict(checks: Sequence[Check]) -> str:
    """One line: all checks pass, or how many fail and which is the first."""
    first = first_failed(checks)
    if first is None:
        text = f"All {len(checks)} checks pass."
    else:
        failed = sum(not check.passed for check in checks)
        text = f"{failed} of {len(checks)} checks fail, first: {first.level} {first.name}"
    if any(check.before is not None for check in checks):
        changed = [f"{check.level} {check.name}" for check in checks if check.changed]
        text += f"\nThe replaced parts change {len(changed)} checks"
        text += f": {', '.join(changed)}" if changed else ""
    return text
