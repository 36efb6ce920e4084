"""Plain values of JSON files and checkpoints: builds dataclasses from them, shows them."""

from __future__ import annotations

import dataclasses
import difflib
from contextlib import suppress
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The inverse of ``dataclasses.asdict``, also after a round trip through JSON.

    Fields without a key get their defaults. A list becomes a tuple where the field is one, and a
    text a number where it is a float: YAML reads 1e-3 as a text.

    Raises:
        ValueError: not a dict, a key that is not a field of ``kind``, or a value of another type.
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
        else _typed(key, value, types[key])
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


def _typed(key: str, value: Any, kind: Any) -> Any:
    """The value of a field; a ValueError names both."""
    try:
        return _convert(value, kind)
    except (ValueError, TypeError, OverflowError):
        wanted = str(kind) if get_origin(kind) else kind.__name__
        raise ValueError(
            f"{key} is {shown(repr(value))}, not {wanted.replace('typing.', '')}"
        ) from None


def _convert(value: Any, kind: Any) -> Any:
    """The value as this type; raises one of three exceptions if it is of another."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and type(None) in arguments:
            return None
        *others, last = (each for each in arguments if each is not type(None))
        for each in others:
            with suppress(ValueError, TypeError, OverflowError):
                return _convert(value, each)
        return _convert(value, last)
    if origin is Literal:
        if value not in arguments:
            raise ValueError
        return value
    if origin is tuple:
        values = value if isinstance(value, (list, tuple)) else [value]
        if arguments[-1] is not Ellipsis and len(values) != len(arguments):
            raise ValueError
        kinds = [arguments[0]] * len(values) if arguments[-1] is Ellipsis else arguments
        return tuple(_convert(each, of) for each, of in zip(values, kinds, strict=True))
    if kind is float and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind or (kind is int and abs(value) >= 2**63):
        raise TypeError
    return value
