"""A training configuration from a YAML or JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from maskrcnn_scratch.builders.from_config import ModelConfig
from maskrcnn_scratch.data.augment import Augmentation
from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.plain_values import from_dict
from maskrcnn_scratch.training.config import TrainConfig

SECTIONS = {"model": ModelConfig, "augmentation": Augmentation}


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
    fields = {name: get_type_hints(kind) for name, kind in SECTIONS.items()}
    values: dict[str, Any] = {}
    try:
        for given, value in content.items():
            key = _field(given)
            section = next((name for name in SECTIONS if key in fields[name]), None)
            if key in SECTIONS and isinstance(value, Mapping):
                inner = {_field(name): each for name, each in value.items()}
                values[key] = {**values.get(key, {}), **inner}
            elif section and key not in get_type_hints(TrainConfig):
                values.setdefault(section, {})[key] = value
            else:
                values[key] = value
        return from_dict(TrainConfig, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _field(key: object) -> str:
    return str(key).replace("-", "_")


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
