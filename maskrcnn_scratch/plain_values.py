"""Plain values of JSON files and checkpoints: builds dataclasses from them, shows them."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The inverse of ``dataclasses.asdict``, also after a round trip through JSON.

    Fields without a key get their defaults. Lists become tuples.

    Raises:
        ValueError: not a dict, or a key that is not a field of ``kind``.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} needs names and values, got {shown(values)}")
    types = get_type_hints(kind)
    for key in values.keys() - types.keys():
        close = difflib.get_close_matches(str(key), types, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{kind.__name__} has no field {shown(repr(key))}{hint}")
    arguments = {
        key: from_dict(types[key], value)
        if dataclasses.is_dataclass(types[key])
        else _tuples(value)
        for key, value in values.items()
    }
    return kind(**arguments)


def check_positive(config: Any, *fields: str) -> None:
    """Raises a ValueError if one of these fields, or a number in it, is not positive or None."""
    for name in fields:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(number is None or number > 0 for number in numbers):
            raise ValueError(f"{name} must be positive, got {value}")


def shown(text: object, length: int = 80) -> str:
    """A value from a file for a message: one line of ASCII, at most ``length`` characters."""
    escaped = str(text)[: length + 1].encode("unicode_escape").decode()
    return escaped if len(escaped) <= length else f"{escaped[:length]}..."


def printable(path: object) -> str:
    """A path for a message: as it is, or escaped if it has characters that do not print."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _tuples(value: Any) -> Any:
    """Lists, also nested ones, as tuples: JSON has no tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
