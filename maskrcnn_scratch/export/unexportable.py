"""Errors that name the component, and its line or op, that can't be exported."""

from __future__ import annotations

import io
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

TORCH = str(Path(torch.__file__).parent)
LONGEST = 300  # characters of an exporter's message that are repeated


class UnexportableError(RuntimeError):
    """A component does something that an exported graph can't represent.

    The message is one line. ``details`` has the exporter's own message, with its dump of the graph,
    which can be hundreds of kilobytes long.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


@contextmanager
def explain_export_errors(model: nn.Module) -> Iterator[None]:
    """Turns what ``torch.export`` raises into an error that names component and line."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):  # torch.export prints the graph of a failed export
            yield
    except Exception as error:
        location = _innermost_component(model, error)
        where = "the model can't be exported"
        if location is not None:
            component, line = location
            where = f"{component} can't be exported: {line}"
        details = f"{printed.getvalue()}\n{error}"
        raise UnexportableError(f"{where}: {_first_line(error)}", details) from None
    sys.stderr.write(printed.getvalue())


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def _innermost_component(model: nn.Module, error: Exception) -> tuple[str, str] | None:
    """The innermost component and source line outside of torch that ``error`` passed through."""
    names = {id(module): (name, type(module).__name__) for name, module in model.named_modules()}
    component = line = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename.startswith(TORCH):
            continue
        name, kind = names.get(id(frame.f_locals.get("self")), ("", ""))
        if name:
            component = f"{name} ({kind})"
        if component is not None:
            summary = traceback.FrameSummary(frame.f_code.co_filename, number, frame.f_code.co_name)
            where = f"{Path(summary.filename).name}:{number}"
            line = f"`{summary.line}` in {summary.name} ({where})"
    return None if component is None or line is None else (component, line)


@contextmanager
def explain_conversion_errors(program: ExportedProgram, target: str = "ONNX") -> Iterator[None]:
    """Turns any error of an exporter into one line.

    An op without a translation is named with its component; of other errors the innermost cause is
    given.
    """
    try:
        yield
    except UnexportableError:
        raise
    except Exception as error:
        op = _op_without_translation(error)
        if op is None:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            message = (
                f"the model can't be exported to {target}: {type(cause).__name__}: "
                f"{_first_line(cause)}"
            )
        else:
            message = (
                f"{_component_with(op, program)} can't be exported to {target}: there is no "
                f"translation of its op {op}"
            )
        raise UnexportableError(message, str(error)) from None


def _op_without_translation(error: BaseException | None) -> str | None:
    while error is not None:
        found = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(error))
        if found:
            return found[1].replace(".", "::", 1) if "::" not in found[1] else found[1]
        error = error.__cause__ or error.__context__
    return None


def _component_with(op: str, program: ExportedProgram) -> str:
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            name = f"{node.target.namespace}::{node.target._opname}"
            stack = list(node.meta.get("nn_module_stack", {}).values())
            if op.startswith(name) and stack:
                path, kind = stack[-1]
                return f"{path.removeprefix('model.')} ({str(kind).rsplit('.', 1)[-1]})"
    return "the model"
