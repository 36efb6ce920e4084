"""A training configuration from a YAML or JSON file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.plain_values import from_dict
from maskrcnn_scratch.training.config import TrainConfig

SECTIONS = ("model", "augmentation")


def read_config(path: Path) -> TrainConfig:
    """Reads a configuration. Fields that are not in the file have their defaults.

    Keys are the options of ``maskrcnn train`` with or without sections, with "-" or "_": both
    ``min-size: 800`` and ``model: {min_size: 800}``. ``config.json`` of a run is such a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML or JSON, or has a wrong key or value; the message names both.
    """
    content = _read(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: a configuration has keys and values, got {content!r:.60}")
    types = get_type_hints(TrainConfig)
    of_section = {name: get_type_hints(types[name]) for name in SECTIONS}
    values: dict[str, Any] = {}
    try:
        for given, value in content.items():
            key = str(given).replace("-", "_")
            section = next((name for name in SECTIONS if key in of_section[name]), None)
            if key in SECTIONS:
                inner = _section(key, value, of_section[key])
                values[key] = {**values.get(key, {}), **inner}
            elif section and key not in types:
                values.setdefault(section, {})[key] = _checked(given, value, of_section[section])
            else:
                values[key] = _checked(given, value, types)
        return from_dict(TrainConfig, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _section(name: str, value: object, types: Mapping[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) or not isinstance(value, Mapping):
        raise ValueError(f"{name} has keys and values, got {value!r}")
    return {str(key).replace("-", "_"): _checked(key, each, types) for key, each in value.items()}


def _read(path: Path) -> Any:
    if path.suffix.lower() == ".json":
        return read_json(path)
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None


def _checked(key: object, value: Any, types: Mapping[str, Any]) -> Any:
    """The value in the type of its field; from_dict names a key that is no field."""
    kind = types.get(str(key).replace("-", "_"), Any)
    try:
        return _convert(value, kind)
    except (ValueError, TypeError):
        shown = getattr(kind, "__name__", None) if get_origin(kind) is None else str(kind)
        raise ValueError(f"{key} is {value!r}, not {shown}".replace("typing.", "")) from None


def _convert(value: Any, kind: Any) -> Any:
    """The value as this type; raises a ValueError or TypeError. YAML reads 1e-3 as a text."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and type(None) in arguments:
            return None
        *others, last = (each for each in arguments if each is not type(None))
        for each in others:
            with suppress(ValueError, TypeError):
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
    if kind in (int, bool, str) and type(value) is not kind:
        raise TypeError
    return value
