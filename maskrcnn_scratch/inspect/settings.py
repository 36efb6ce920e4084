"""Settings of a model by their path, such as ``roi_heads.nms_thresh=0.3``."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.plain_values import shown


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
        option = f"--set {setting}"
        if not equals or not path:
            raise ValueError(f"{option}: give it as PATH=VALUE, as in roi_heads.nms_thresh=0.3")
        set_at(changed, path, partial(_value, text, option=option), option)
    return changed


def set_at(model: Any, path: str, make: Callable[[Any], Any], option: str) -> None:
    """Sets the attribute or dict entry at ``path`` to ``make`` of what is there.

    Args:
        option: where the path comes from, for messages.

    Raises:
        ValueError: there is no such attribute, or it cannot have that value.
    """
    *owners, name = path.split(".")
    owner: Any = model
    for step in owners:
        owner = _get(owner, step, option)
    value = make(_get(owner, name, option))
    if isinstance(owner, dict):
        owner[name] = value
        return
    try:
        setattr(owner, name, value)
    except TypeError as error:  # a module, in place of which there is something else
        raise ValueError(f"{option}: {error}") from error


def _get(owner: Any, name: str, option: str) -> Any:
    known = owner if isinstance(owner, dict) else [n for n in dir(owner) if not n.startswith("_")]
    if name in known:
        return owner[name] if isinstance(owner, dict) else getattr(owner, name)
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{option}: {type(owner).__name__} has no {name!r}{hint}")


def _value(text: str, current: Any, *, option: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"{option}: {text!r} is no number, tuple, True or False") from None
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(current, tuple) and isinstance(value, list):
        return tuple(value)
    if type(value) is not type(current):
        raise ValueError(
            f"{option}: it is of type {type(current).__name__} ({shown(current)}), "
            f"not {type(value).__name__}"
        )
    return value
