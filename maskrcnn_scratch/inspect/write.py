"""The report as one HTML file: template, style, scripts and data, all inlined."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from maskrcnn_scratch.files import write_atomically

SCRIPTS = (
    "core",
    "figure",
    "rail",
    "stage_features",
    "stage_anchors",
    "stage_nms",
    "stage_roi",
    "stage_heads",
    "training",
    "compare",
    "main",
)


def write_page(content: Mapping[str, Any], path: Path) -> None:
    """Writes the report of one image.

    Args:
        content: from ``collect.inspect_image``.
        path: of the HTML file; its folder is made if it is missing.

    Raises:
        OSError: it cannot be written, naming the path.
    """
    script = "\n".join(_page_file(f"{name}.js") for name in SCRIPTS)
    _write(path, f"{content['name']}: inside Mask R-CNN", content, script)


def write_index(content: Mapping[str, Any], path: Path) -> None:
    """Writes the page that lists several reports; ``content`` from ``report.index_content``."""
    _write(path, "Inside Mask R-CNN", content, _page_file("index.js"))


def _write(path: Path, title: str, content: Mapping[str, Any], script: str) -> None:
    # "<" as an escape: no text in the data can end the script element.
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = _page_file("page.html")
    parts = {
        "title": html.escape(title),
        "style": _page_file("page.css"),
        "content": data,
        "script": script,
    }
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text, 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error.strerror})") from error
    write_atomically(path, lambda file: file.write(page.encode()))


def _page_file(name: str) -> str:
    return (files("maskrcnn_scratch.inspect") / "page" / name).read_text(encoding="utf-8")
