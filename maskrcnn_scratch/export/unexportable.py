"""Errors that name the component, and its line or op, that can't be exported."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

TORCH = str(Path(torch.__file__).parent)


class UnexportableError(RuntimeError):
    """A component does something that an exported graph can't represent."""


@contextmanager
def explain_export_errors(model: nn.Module) -> Iterator[None]:
    """Turns what ``torch.export`` raises into an error that names component and line."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        location = _innermost_component(model, error)
        if location is None:
            raise UnexportableError(f"the model can't be exported: {reason}") from error
        component, line = location
        raise UnexportableError(f"{component} can't be exported: {line}: {reason}") from error


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
def explain_conversion_errors(program: ExportedProgram) -> Iterator[None]:
    """Turns what the ONNX exporter raises for an op without a translation into one line."""
    try:
        yield
    except Exception as error:
        op = _op_without_translation(error)
        if op is None:
            raise
        raise UnexportableError(
            f"{_component_with(op, program)} can't be exported to ONNX: there is no translation of "
            f"its op {op}"
        ) from error


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
