"""One comparison with its tolerance and its outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Nested: TypeAlias = "Tensor | Sequence[Nested] | Mapping[str, Nested]"


@dataclass(frozen=True)
class Check:
    """The outcome of one comparison.

    Attributes:
        level: "op", "module", "stage", "model" or "losses".
        name: what was compared.
        absolute: largest difference.
        relative: largest difference, divided by the reference's largest value.
        tolerance: what was allowed, in words.
        passed: whether the difference stays within it.
        note: details, for example how many detections were compared.
    """

    level: str
    name: str
    absolute: float
    relative: float
    tolerance: str
    passed: bool
    note: str = ""


def compare(
    level: str, name: str, ours: Nested, theirs: Nested, *, atol: float = 0.0, rtol: float = 0.0
) -> Check:
    """Compares tensors, or lists and dicts of them in the same order.

    Args:
        atol: largest difference allowed.
        rtol: largest difference allowed, relative to the reference's largest value. With both at
            zero the two must be equal.
    """
    tolerance = "equal"
    if atol or rtol:
        tolerance = f"{atol:.0e} absolute" if atol else f"{rtol:.0e} relative"
    ours_flat, theirs_flat = list(_flatten(ours)), list(_flatten(theirs))
    shapes = [list(x.shape) for x in ours_flat], [list(x.shape) for x in theirs_flat]
    if shapes[0] != shapes[1]:
        note = f"shapes {shapes[0]} against {shapes[1]}"
        return Check(level, name, float("inf"), float("inf"), tolerance, False, note)
    absolute = relative = 0.0
    for x, y in zip(ours_flat, theirs_flat, strict=True):
        if y.numel() == 0 or torch.equal(x, y):
            continue
        difference = float((x.double() - y.double()).abs().nan_to_num(nan=torch.inf).max())
        absolute = max(absolute, difference)
        relative = max(relative, difference / max(float(y.double().abs().max()), 1e-30))
    passed = absolute <= atol or relative <= rtol
    return Check(level, name, absolute, relative, tolerance, passed)


def _flatten(value: Nested) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value.detach()]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for item in value for tensor in _flatten(item)]
