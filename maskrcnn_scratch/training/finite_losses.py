"""Checks losses and gradients for NaN and infinity, and names the images of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from maskrcnn_scratch.data.batch import Target


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient is NaN or infinite. The message names it and the images."""


def check_finite(
    values: dict[str, float], step: int, learning_rate: float, targets: Sequence[Target]
) -> None:
    """Raises a NonFiniteLossError that names the values, the images and their annotations.

    Args:
        values: losses or other numbers of a step, by name.
        step: number of the step, from 1.
        learning_rate: learning rate of the step.
        targets: the targets that ``values`` were computed from.
    """
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise NonFiniteLossError(
            f"step {step}, learning rate {learning_rate:.3g}: {', '.join(bad)}; "
            f"images: {'; '.join(map(describe, targets))}"
        )


def describe(target: Target) -> str:
    """The name of an image in messages, such as ``street.jpg (annotations 7, 12)``."""
    name = target.get("file_name", f"image {target.get('image_id', 'without a name')}")
    ids = [int(i) for i in target.get("annotation_ids", ())]
    return f"{name} (annotations {', '.join(map(str, ids))})" if ids else f"{name} (no annotations)"
