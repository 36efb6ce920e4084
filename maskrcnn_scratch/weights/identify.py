"""Which model a state dict belongs to, or how it differs from the nearest one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from maskrcnn_scratch.weights.errors import WeightsError
from maskrcnn_scratch.weights.layouts import (
    BODY,
    LAYOUTS,
    detect_layout,
    first_three,
    without_counters,
)
from maskrcnn_scratch.without_memory import without_memory

__all__ = ["BACKBONE", "BUILDERS", "Match", "convert", "nearest_model", "to_torchvision"]

BUILDERS = (
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
)
BACKBONE = "resnet50"  # a ResNet-50 without a detector


@dataclass(frozen=True)
class Match:
    """How a state dict compares with a model.

    Attributes:
        model: one of ``BUILDERS`` or ``BACKBONE``.
        missing: keys that only the model has.
        unexpected: keys that only the state dict has.
    """

    model: str
    missing: list[str]
    unexpected: list[str]

    @property
    def exact(self) -> bool:
        return not self.missing and not self.unexpected

    def __str__(self) -> str:
        if self.exact:
            return f"the keys of {self.model}"
        kinds = {"missing": self.missing, "unexpected": self.unexpected}
        counts = ", ".join(f"{len(keys)} {kind}" for kind, keys in kinds.items() if keys)
        first = [f"{kind} {key}" for kind, keys in kinds.items() for key in keys]
        return f"nearest is {self.model}, with {counts}: {first_three(first)}"


@cache
def known_keys() -> dict[str, dict[str, None]]:
    """The keys of each model in order, without the batch counters of batch normalisation."""
    import maskrcnn_scratch

    keys = {}
    for name in BUILDERS:
        with without_memory():
            model = getattr(maskrcnn_scratch, name)(weights_backbone=None)
        keys[name] = dict.fromkeys(without_counters(model.state_dict()))
    body = [key for key in keys[BUILDERS[0]] if key.startswith(BODY)]
    return {**keys, BACKBONE: dict.fromkeys(body)}


def nearest_model(keys: Collection[str]) -> Match:
    """The model whose keys overlap most with ``keys`` (torchvision's names), by IoU of the sets."""
    found = without_counters(dict.fromkeys(keys))

    def overlap(model: str) -> float:
        known = known_keys()[model]
        return len(known.keys() & found.keys()) / len(known.keys() | found.keys())

    model = max(known_keys(), key=overlap)
    known = known_keys()[model]
    return Match(
        model,
        missing=[key for key in known if key not in found],
        unexpected=[key for key in found if key not in known],
    )


def to_torchvision(
    state_dict: Mapping[str, Tensor], source: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """The state dict in torchvision's layout, and the name of the model whose keys it has.

    Args:
        state_dict: of one of the models, in any layout.
        source: the layout; detected from the keys by default.

    Raises:
        WeightsError: the keys fit no known layout, or are not exactly those of one of the models.
    """
    source = source or detect_layout(state_dict)
    if source is None:
        raise WeightsError(f"the keys fit no known layout: {first_three(state_dict)}")
    ours = LAYOUTS[source].to_torchvision(state_dict)
    match = nearest_model(ours)
    if not match.exact:
        raise WeightsError(f"not the weights of a known model: {match}")
    return ours, match.model


def convert(state_dict: Mapping[str, Tensor], source: str | None, target: str) -> dict[str, Tensor]:
    """Renames and rearranges a state dict from one of ``LAYOUTS`` to another.

    Values are moved, never computed with, so that converting back gives the same bits. Tensors that
    the target layout does not have are dropped: the classifier of an ImageNet network; everything
    but the backbone, if the target is an ImageNet network; for detectron2, the batch counters of
    batch normalisation and the background's box deltas and masks. No output of the target depends
    on any of them.

    Args:
        state_dict: of one of the models.
        source: its layout; detected from the keys if None.
        target: the layout to convert to.

    Raises:
        WeightsError: as ``to_torchvision``, or the target has no layout for this model.
    """
    return LAYOUTS[target].from_torchvision(to_torchvision(state_dict, source)[0])
