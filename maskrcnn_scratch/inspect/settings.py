"""Settings of a model by their path, such as ``roi_heads.nms_thresh=0.3``."""

from __future__ import annotations

import ast
import copy
import difflib
from typing import Any

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN


def with_settings(model: GeneralizedRCNN, settings: tuple[str, ...]) -> GeneralizedRCNN:
    """A copy of the model with these attributes changed.

    Args:
        settings: ``PATH=VALUE``; the path leads over attributes and keys of dicts, the value is a
            Python literal of the type that is there.

    Raises:
        ValueError: there is no such attribute, or the value is of another type.
    """
    changed = copy.deepcopy(model)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ValueError(
                f"--set {setting}: give it as PATH=VALUE, as in roi_heads.nms_thresh=0.3"
            )
        *owners, name = path.split(".")
        owner: Any = changed
        for step in owners:
            owner = _get(owner, step, setting)
        value = _value(text, _get(owner, name, setting), setting)
        if isinstance(owner, dict):
            owner[name] = value
        else:
            setattr(owner, name, value)
    return changed


def _get(owner: Any, name: str, setting: str) -> Any:
    known = owner if isinstance(owner, dict) else [n for n in dir(owner) if not n.startswith("_")]
    if name in known:
        return owner[name] if isinstance(owner, dict) else getattr(owner, name)
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"--set {setting}: {type(owner).__name__} has no {name!r}{hint}")


def _value(text: str, current: Any, setting: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"--set {setting}: {text!r} is no number, tuple, True or False") from None
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(current, tuple) and isinstance(value, list):
        return tuple(value)
    if type(value) is not type(current):
        raise ValueError(
            f"--set {setting}: it is of type {type(current).__name__} ({current}), "
            f"not {type(value).__name__}"
        )
    return value
