"""The plain values that JSON files and checkpoints hold: as dataclasses, and in messages."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The dataclass of type ``kind`` whose ``dataclasses.asdict``, through JSON, is ``values``.

    Raises:
        ValueError: no dict, or a key that there is no field for.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} is made of names and values, not of {shown(values)}")
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
    """Raises a ValueError for the first of these fields with a number that is not; None is fine."""
    for name in fields:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(number is None or number > 0 for number in numbers):
            raise ValueError(f"{name} must be positive, got {value}")


def shown(text: object, length: int = 80) -> str:
    """A name out of a file as a message can hold it: one line of ASCII, at most ``length`` long."""
    escaped = str(text)[: length + 1].encode("unicode_escape").decode()
    return escaped if len(escaped) <= length else f"{escaped[:length]}..."


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
