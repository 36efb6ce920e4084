"""The model of the user's own function, which ``--model FILE.py:NAME`` names."""

from __future__ import annotations

from typing import Any

from torch import nn

from maskrcnn_scratch.builders.from_config import Builder, ModelConfig
from maskrcnn_scratch.user_code import PartNotFoundError, errors_in_one_line, find_part


def find_builder(reference: str) -> Builder:
    """The function ``build(config, num_classes)`` that ``reference`` names. Runs the file.

    The function that is returned checks the model: it must have the attributes of ``FasterRCNN``
    that training and inference use, and ``num_classes`` outputs.

    Args:
        reference: FILE.py:NAME, or package.module:NAME.

    Raises:
        PartNotFoundError: there is no such file or name, or it is no function.
        UserCodeError: the file, or later the function, raised an error or returned no such model.
    """
    with errors_in_one_line(reference):
        function: Any = find_part(reference)
    if not callable(function):
        raise PartNotFoundError(
            f"{reference} is an object of {type(function).__name__}, not a function "
            "build(config, num_classes)"
        )

    def build(config: ModelConfig, num_classes: int) -> Any:
        with errors_in_one_line(reference):
            model = function(config, num_classes)
            _check(model, num_classes)
        return model

    return build


def _check(model: Any, num_classes: int) -> None:
    stages = ("transform", "backbone", "rpn", "roi_heads")
    if not isinstance(model, nn.Module) or not all(hasattr(model, name) for name in stages):
        raise TypeError(f"it returns {type(model).__name__}, not a MaskRCNN or FasterRCNN")
    classes = getattr(model.roi_heads, "num_classes", lambda: None)()
    if classes not in (None, num_classes):
        raise ValueError(
            f"it returns a model of {classes} classes: num_classes is {num_classes}, with the "
            "background"
        )
