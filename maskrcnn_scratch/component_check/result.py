"""The outcome of one check, and how a check is run."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import maskrcnn_scratch

# The last three are for capabilities: a part may lack one without being wrong.
Status = Literal["ok", "FAIL", "not applicable", "yes", "no", "not tried"]

LONGEST_MESSAGE = 200  # characters of an error's first line

# Frames of these folders are not the user's code.
_LIBRARIES = tuple(str(Path(str(m.__file__)).parent) for m in (torch, maskrcnn_scratch))


@dataclass(frozen=True)
class CheckResult:
    """One line of the report: what was checked, and the values that were seen."""

    name: str
    status: Status
    detail: str = ""


class CheckFailed(Exception):
    """The part is wrong; the message gives the values."""


class NotApplicable(Exception):
    """The check makes no sense for this part; the message says why."""


def require(condition: bool, message: str) -> None:
    """Raises ``CheckFailed`` if ``condition`` is false."""
    if not condition:
        raise CheckFailed(message)


def outcome(name: str, check: Callable[[], str]) -> CheckResult:
    """Runs ``check``, which returns the details, and turns whatever it raises into a result.

    The global random numbers start from the same seed in each check.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return CheckResult(name, "ok", check())
        except NotApplicable as reason:
            return CheckResult(name, "not applicable", str(reason))
        except Exception as error:
            return CheckResult(name, "FAIL", describe(error))


def describe(error: BaseException) -> str:
    """One line: type and message of ``error``, and the line of the user's code that raised it."""
    if isinstance(error, CheckFailed):
        return str(error)
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    message = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."
    shown = type(error).__name__ + (f": {message}" if message else "")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*_LIBRARIES, "<")):
            return f"{shown} ({Path(frame.filename).name}:{frame.lineno})"
    return shown


def row(result: CheckResult) -> str:
    """The result as a line of text."""
    return f"{result.status:14}  {result.name:38}  {result.detail}".rstrip()


def verdict(results: list[CheckResult]) -> str:
    """One line: all checks pass, or how many fail and which is the first."""
    checks = [result for result in results if result.status in ("ok", "FAIL")]
    failed = [result for result in checks if result.status == "FAIL"]
    if not failed:
        return f"All {len(checks)} checks pass."
    return f"{len(failed)} of {len(checks)} checks fail, first: {failed[0].name}"
