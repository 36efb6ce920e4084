"""The names of the checks, by which a run selects some of them: ``ops.nms``, ``stages``."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

# Group -> parts. The groups are in the order in which a run makes them; the first check that fails
# in this order names what diverges.
PARTS: dict[str, tuple[str, ...]] = {
    "ops": (
        "roi_align", "nms", "batched_nms", "paste_masks", "box_iou", "clip_boxes_to_image",
        "boxcoder_encode", "boxcoder_decode",
    ),
    "half": (
        "roi_align", "nms", "batched_nms", "paste_masks", "box_area", "box_iou",
        "clip_boxes_to_image", "boxcoder_encode", "boxcoder_decode",
    ),
    "detectron2": ("anchors", "roi_align", "paste_masks", "detections"),
    "modules": (
        "resnet_50", "fpn", "rpn_head", "box_head", "box_predictor", "mask_head", "mask_predictor",
    ),
    "stages": (
        "transform", "anchors", "proposals", "box_levels", "box_roialign", "mask_levels",
        "mask_roialign", "detections", "paste",
    ),
    "model": ("detections",),
    "losses": (
        "frozenbatchnorm2d", "frozenbatchnorm2d_steps", "gradients_frozenbatchnorm2d",
        "batchnorm2d", "batchnorm2d_steps", "gradients_batchnorm2d",
    ),
    "float64": ("detections", "losses", "gradients"),
}  # fmt: skip

# What follows the part in the name of a check: which weights, images, sizes or settings.
_VARIANT = re.compile(
    r", (?:weights|image|batch|float16|bfloat16) ?| ratio |,? [\d+]+ (?:boxes|objects)\b| \("
)


def title_of(level: str, name: str) -> str:
    """What the check ``name`` of the group ``level`` compares, whatever the weights and sizes."""
    return "detections" if level == "model" else _VARIANT.split(name)[0]


def part_of(level: str, name: str) -> str:
    """``title_of`` as one word, as in ``PARTS``."""
    title = re.sub(r"\d+ steps", "steps", title_of(level, name).lower())
    return re.sub(r"[^a-z0-9]+", "_", title).strip("_")


@dataclass(frozen=True)
class Selection:
    """Which checks a run makes; all if ``words`` is empty.

    Args:
        words: names of groups, or ``group.part``.

    Raises:
        ValueError: a word that is neither.
    """

    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = all_names()
        for word in self.words:
            if word not in known:
                close = difflib.get_close_matches(word, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"groups are {', '.join(PARTS)}"
                raise ValueError(f"there is no parity check {word!r}: {hint}")

    def parts(self, group: str) -> tuple[str, ...]:
        """The selected parts of a group."""
        if not self.words or group in self.words:
            return PARTS[group]
        return tuple(part for part in PARTS[group] if f"{group}.{part}" in self.words)


def all_names() -> list[str]:
    """Every group, and ``group.part`` of its parts."""
    return [
        name for group, parts in PARTS.items() for name in (group, *(f"{group}.{p}" for p in parts))
    ]
