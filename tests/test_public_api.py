"""The public names and their signatures are those of ``public_api.txt``.

A change of the interface shows here. If it is meant, write it down in CHANGELOG.md and run
``python tests/test_public_api.py`` to renew the file.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator
from pathlib import Path

import maskrcnn_scratch
from maskrcnn_scratch import ops
from maskrcnn_scratch.cli import COMMANDS

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def describe() -> str:
    lines = [f"maskrcnn {command}" for command in COMMANDS]
    for module in (maskrcnn_scratch, ops):
        for name in sorted(module.__all__):
            lines += describe_object(f"{module.__name__}.{name}", getattr(module, name))
    return "\n".join(lines) + "\n"


def describe_object(name: str, value: object) -> Iterator[str]:
    if isinstance(value, type) and issubclass(value, enum.Enum):
        yield f"{name}: {', '.join(value.__members__)}"
    elif isinstance(value, type):
        yield f"{name}{signature(value)}"
        for member, function in inspect.getmembers(value, inspect.isroutine):
            is_ours = str(getattr(function, "__module__", "")).startswith("maskrcnn_scratch")
            if is_ours and not member.startswith("_"):
                yield f"{name}.{member}{signature(function)}"
    elif callable(value):
        yield f"{name}{signature(value)}"
    else:
        yield name


def signature(function: object) -> str:
    """As written in the source: evaluated annotations print differently between versions."""
    parameters = []
    star = False
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if parameter.kind == parameter.KEYWORD_ONLY and not star:
            parameters.append("*")
            star = True
        star |= parameter.kind == parameter.VAR_POSITIONAL
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(
            parameter.kind, ""
        )
        default = parameter.default
        if default is parameter.empty:
            text = ""
        elif isinstance(default, (int, float, str, tuple, type(None))):
            text = f"={default!r}"
        else:
            name = getattr(default, "__name__", None) or type(default).__name__
            text = f"={name}"
        parameters.append(prefix + parameter.name + text)
    return f"({', '.join(parameters)})"


def test_public_names_and_signatures() -> None:
    assert describe() == SNAPSHOT.read_text()


if __name__ == "__main__":
    SNAPSHOT.write_text(describe())
