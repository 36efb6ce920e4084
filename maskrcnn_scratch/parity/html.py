"""The results of the parity checks as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from maskrcnn_scratch.parity.compare import Check
from maskrcnn_scratch.parity.report import divergence, first_failed, summary, verdict

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } th { text-align: left }
td, th { border-bottom: 1px solid #8884; padding: .2em .8em .2em 0; vertical-align: top }
.number { font-variant-numeric: tabular-nums; text-align: right }
.fail { color: #c00; font-weight: bold } pre { background: #8882; padding: 1em; overflow: auto }
"""


def page(checks: Sequence[Check], title: str) -> str:
    """Verdict, first divergence, the summary and every check.

    Args:
        title: what was compared with what, such as the versions.
    """
    parts = [f"<h1>Parity with torchvision</h1><p>{escape(title)}</p>"]
    parts.append(f"<p><strong>{escape(verdict(checks))}</strong></p>")
    first = first_failed(checks)
    if first is not None:
        parts.append(f"<pre>{escape(chr(10).join(divergence(first)))}</pre>")
    head = ("", "compared", "largest error", "allowed")
    parts += [
        "<h2>Summary</h2>",
        _table(head, [[escape(c) for c in cells] for cells in summary(checks)]),
    ]
    rows = [
        [
            "ok" if check.passed else '<span class="fail">FAIL</span>',
            escape(f"{check.level} {check.name}"),
            f'<span class="number">{check.absolute:.1e}</span>',
            f'<span class="number">{check.relative:.1e}</span>',
            escape(check.tolerance),
            escape("; ".join(filter(None, (check.note, check.change, _worst(check))))),
        ]
        for check in checks
    ]
    columns = ("", "check", "absolute", "relative", "allowed", "")
    parts += ["<h2>All checks</h2>", _table(columns, rows)]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>Parity with torchvision</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def _worst(check: Check) -> str:
    return "" if check.passed or check.worst is None else f"worst element {check.worst.where}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"
