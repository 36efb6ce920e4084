"""The results of the parity checks as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from maskrcnn_scratch.parity.compare import Check

LEVELS = ("op", "module", "stage", "model", "losses")
HEADER = f"{'':5}{'check':44}{'absolute':>10}{'relative':>10}  tolerance"


def row(check: Check) -> str:
    mark = "ok" if check.passed else "FAIL"
    text = (
        f"{mark:5}{check.level + ' ' + check.name:44}{check.absolute:10.1e}{check.relative:10.1e}"
    )
    return f"{text}  {check.tolerance}" + (f" ({check.note})" if check.note else "")


def markdown(checks: Sequence[Check]) -> str:
    """The largest error of each part over all weights and images, as a Markdown table."""
    worst: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        part = re.split(
            r", (?:weights|image|batch) |,? [\d+]+ (?:boxes|objects)| N...\b", check.name
        )[0]
        if check.level == "model":
            part = "detections matched one to one"
        worst.setdefault((check.level, part), []).append(check)
    lines = ["| | compared | largest error | allowed |", "| --- | --- | --- | --- |"]
    for (level, part), same in worst.items():
        error = f"{max(check.absolute for check in same):.0e}"
        relative = "relative" in same[0].tolerance
        if relative:
            error = f"{max(check.relative for check in same):.0e} relative"
        if level == "model":
            error = "; ".join(check.note for check in same)
        if not any(check.absolute for check in same):
            error = "0"
        lines.append(f"| {level} | {part} | {error} | {same[0].tolerance} |")
    return "\n".join(lines) + "\n"


def verdict(checks: Sequence[Check]) -> str:
    """One line: all checks pass, or how many fail and which is the first."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return f"All {len(checks)} checks pass."
    first = min(failed, key=lambda check: LEVELS.index(check.level))
    return f"{len(failed)} of {len(checks)} checks fail, first: {first.level} {first.name}"
