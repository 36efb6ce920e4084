"""The ``maskrcnn`` command. Each subcommand is a function in its own file.

The signature and docstring of the function become the options and their help. The function returns
the exit status. For bad input it raises an error whose message names the file or option.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Collection, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from maskrcnn_scratch import __version__
from maskrcnn_scratch.user_code import PartNotFoundError, UserCodeError, locate

# Command -> help. The first word is the file in this folder, the last the function in it.
COMMANDS = {
    "predict": "detect objects in images and videos: overlays, JSON, COCO results",
    "train": "train on your data, or resume a run",
    "evaluate": "compute COCO's box and mask AP of a model or of saved results",
    "export": "export a model as ONNX, torch.export program or compiled package",
    "data check": "check a data set for problems, and how it fits the model",
    "data convert": "rewrite a data set of another tool in COCO format",
    "inspect": "show every stage of the model on an image, in one HTML file",
    "parity": "compare every part of the model with torchvision",
    "check": "check whether a custom part does what the model relies on",
    "weights show": "show the content of a weights file, and which model it fits",
    "weights convert": "convert weights for torchvision, detectron2, timm or to safetensors",
}

# Command -> the extra with what it needs; for the others that is "cli".
EXTRAS = {
    "train": "train",
    "evaluate": "evaluate",
    "export": "export",
    "data": "evaluate",
    "inspect": "inspect",
    "parity": "parity",
}

# Errors that are shown in one line. Others are errors of this package, and have a traceback.
EXPECTED = (OSError, ValueError, ArithmeticError, RuntimeError, ImportError, MemoryError)
FAILURE, USAGE, INTERRUPTED = 1, 2, 130  # exit status


class UsageError(ValueError):
    """The arguments of the command are wrong. Nothing was done."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0 is success, 1 a failure, 2 wrong usage, 130 Ctrl-C. ``args`` are by default those of the
    process.
    """
    args = sys.argv[1:] if args is None else list(args)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0 if args else USAGE
    if args[0] == "--version":
        print(f"maskrcnn_scratch {__version__}")
        return 0
    for command in COMMANDS:
        words = command.split()
        if args[: len(words)] == words:
            return _run(command, args[len(words) :])
    group = [command for command in COMMANDS if command.startswith(f"{args[0]} ")]
    if args[1:] in (["-h"], ["--help"]) and group:
        print(_help(group))
        return 0
    return _complain(
        "maskrcnn",
        f"no command {' '.join(args[:2])!r}; the commands are {', '.join(group or COMMANDS)}",
        USAGE,
    )


def pick_device(name: str) -> str:
    """``name`` if this machine has that device; for "auto" CUDA if there is a GPU, else the CPU."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise UsageError(f"--device {name} cannot be used here: {reason}") from error
    return name


def _help(commands: Collection[str] = COMMANDS) -> str:
    width = max(map(len, commands))
    return "\n".join(
        [
            "usage: maskrcnn COMMAND ...",
            "",
            "Train, evaluate and use Mask R-CNN.",
            "",
            *(f"  {command:{width}}  {COMMANDS[command]}" for command in commands),
            "",
            "maskrcnn COMMAND --help lists the options of a command. MASKRCNN_TRACEBACK=1 in the",
            "environment shows the traceback of an error.",
        ]
    )


def _run(command: str, args: Sequence[str]) -> int:
    words, program = command.split(), f"maskrcnn {command}"
    plain, warnings.formatwarning = warnings.formatwarning, partial(_format_warning, program, set())
    try:
        import tyro

        module = import_module(f"{__name__}.{words[0]}")
        function = getattr(module, words[-1])
        if hasattr(module, "with_stored_defaults"):
            function = module.with_stored_defaults(args)
        return int(tyro.cli(function, prog=program, args=args))
    except KeyboardInterrupt:
        return _complain(program, "interrupted", INTERRUPTED)
    except Exception as error:
        located = None if isinstance(error, UserCodeError) else locate(error)
        if os.environ.get("MASKRCNN_TRACEBACK") or not (located or isinstance(error, EXPECTED)):
            raise
        message = (
            located or str(error) or ("out of memory" if isinstance(error, MemoryError) else "")
        )
        if isinstance(error, ModuleNotFoundError) and not located:
            message += f": pip install 'maskrcnn_scratch[{EXTRAS.get(words[0], 'cli')}]'"
        wrong_usage = isinstance(error, (UsageError, PartNotFoundError))
        return _complain(program, message, USAGE if wrong_usage else FAILURE)
    finally:
        warnings.formatwarning = plain


def _format_warning(program: str, shown: set[str], message: Warning | str, *_: Any) -> str:
    """One line for each warning of a command; nothing for one that was shown before."""
    text = f"{program}: warning: {message}\n"
    if text in shown:
        return ""
    shown.add(text)
    return text


def _complain(program: str, message: str, status: int) -> int:
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return status
