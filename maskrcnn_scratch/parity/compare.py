"""One comparison with its tolerance, its outcome, and where it is worst."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Nested: TypeAlias = "Tensor | Sequence[Nested] | Mapping[str, Nested]"
# What an op was given, by name. A tensor with an axis has one row per index of the result along
# that axis; a tensor alone is summarised.
Inputs: TypeAlias = "Mapping[str, tuple[Tensor, int] | Tensor | float | str]"


@dataclass(frozen=True)
class Worst:
    """The element that differs most.

    Attributes:
        where: keys that lead to its tensor, such as ``['0']``, and its index.
        ours, theirs: its two values.
        inputs: what it was computed from, by name.
    """

    where: str
    ours: float
    theirs: float
    inputs: dict[str, str]


@dataclass(frozen=True)
class Check:
    """The outcome of one comparison.

    Attributes:
        level: the group of checks that it belongs to, see ``names.PARTS``.
        name: what was compared.
        absolute: largest difference.
        relative: largest difference, divided by the reference's largest value.
        tolerance: what was allowed, in words.
        passed: whether the difference stays within it.
        note: details, for example how many detections were compared.
        worst: where the difference is largest; None where all are equal, and for whole models.
        before: the same check without ``--replace``; None if nothing was replaced.
    """

    level: str
    name: str
    absolute: float
    relative: float
    tolerance: str
    passed: bool
    note: str = ""
    worst: Worst | None = None
    before: Check | None = None

    @property
    def changed(self) -> bool:
        """Whether a replaced part changes this check."""
        before = self.before
        return before is not None and (
            (self.absolute, self.passed, self.note) != (before.absolute, before.passed, before.note)
        )

    @property
    def change(self) -> str:
        """What a replaced part changes, in words; empty if nothing was replaced."""
        if self.before is None:
            return ""
        if not self.changed:
            return "unchanged"
        return f"changed, was {self.before.note or f'{self.before.absolute:.1e}'}"


def compare(
    level: str,
    name: str,
    ours: Nested,
    theirs: Nested,
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
    inputs: Inputs | None = None,
    note: str = "",
) -> Check:
    """Compares tensors, or lists and dicts of them in the same order.

    Args:
        atol: largest difference allowed.
        rtol: largest difference allowed, relative to the reference's largest value. With both at
            zero the two must be equal.
        inputs: what both were given, to show beside the worst element.
        note: of the check.
    """
    tolerance = "equal"
    if atol or rtol:
        tolerance = f"{atol:.0e} absolute" if atol else f"{rtol:.0e} relative"
    ours_flat, theirs_flat = list(_flatten(ours)), list(_flatten(theirs))
    shapes = [list(x.shape) for _, x in ours_flat], [list(x.shape) for _, x in theirs_flat]
    if shapes[0] != shapes[1]:
        note = f"shapes {shapes[0]} against {shapes[1]}"
        return Check(level, name, torch.inf, torch.inf, tolerance, False, note)
    absolute = relative = 0.0
    worst = None
    for (path, x), (_, y) in zip(ours_flat, theirs_flat, strict=True):
        if y.numel() == 0 or torch.equal(x, y):
            continue
        difference = (x.double() - y.double()).abs().nan_to_num(nan=torch.inf)
        largest = float(difference.max())
        if largest > absolute:
            worst = _element(path, x, y, int(difference.argmax()), inputs or {})
        absolute = max(absolute, largest)
        relative = max(relative, largest / max(float(y.double().abs().max()), 1e-30))
    passed = absolute <= atol or relative <= rtol
    return Check(level, name, absolute, relative, tolerance, passed, note, worst)


def _element(path: str, ours: Tensor, theirs: Tensor, flat: int, inputs: Inputs) -> Worst:
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), ours.shape))
    shown: dict[str, str] = {}
    for name, value in inputs.items():
        if isinstance(value, tuple):
            rows, axis = value
            if axis < len(index) and index[axis] < len(rows):
                shown[f"{name}[{index[axis]}]"] = str(rows[index[axis]].tolist())
        elif isinstance(value, Tensor):
            low, high = (float(bound) for bound in value.double().aminmax())
            shown[name] = f"{list(value.shape)}, from {low:.6g} to {high:.6g}"
        else:
            shown[name] = str(value)
    where = path + (str(list(index)) if index else "")
    return Worst(where, float(ours[index]), float(theirs[index]), shown)


def _flatten(value: Nested, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each tensor, and the keys and indices that lead to it."""
    if isinstance(value, Tensor):
        yield path, value.detach()
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in items:
        yield from _flatten(item, f"{path}[{key!r}]")
