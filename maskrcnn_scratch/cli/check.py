"""``maskrcnn check``: whether a custom part does what the model relies on."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from maskrcnn_scratch.cli import UsageError
from maskrcnn_scratch.component_check.loss import UnknownLossError
from maskrcnn_scratch.component_check.result import row, verdict
from maskrcnn_scratch.component_check.run import Kind, check_reference
from maskrcnn_scratch.component_check.subject import LossName, Setting
from maskrcnn_scratch.files import write_json


def check(
    part: tyro.conf.Positional[str],
    kind: Annotated[Kind, tyro.conf.arg(name="as")],
    args: str = "{}",
    channels: int = 64,
    side: int = 128,
    loss: LossName | None = None,
    train: bool = False,
    quick: bool = False,
    json: Path | None = None,
) -> int:
    """Check a custom part, alone and in a small model, and print one line per check.

    The part is a class, a function, or a function without required parameters that builds it. The
    small model has 4 classes, background included. Exit status 1 if a check fails.

    Args:
        part: FILE.py:NAME, or package.module:NAME.
        kind: What the part is.
        args: Keyword arguments of the part as JSON, such as '{"channels": 64}'.
        channels: Channels of the part's input: of the feature maps, or of a predictor's features.
        side: Shorter side of the images in pixels, a multiple of 32.
        loss: Which loss the part replaces, if its name or parameters do not tell.
        train: Also train for 50 steps on generated shapes; the loss must fall.
        quick: Skip compilation and export.
        json: Write all results to this file.
    """
    try:
        arguments = json_module.loads(args)
    except json_module.JSONDecodeError as error:
        raise UsageError(f"--args {args} is no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise UsageError(f'--args {args} is no JSON object: expected {{"name": value}}')
    try:
        setting = Setting(side, channels, loss)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    results = []
    try:
        for result in check_reference(part, kind, arguments, setting, train=train, quick=quick):
            results.append(result)
            print(row(result), flush=True)
    except UnknownLossError as error:
        raise UsageError(str(error)) from error
    if json is not None:
        write_json(json, [asdict(result) for result in results], indent=1)
    print(verdict(results))
    return int(any(result.status == "FAIL" for result in results))
