"""Compares the detections of an exported model with those of the model in Python.

Shapes: see ``structures``; here ``D'`` detections of the exported model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_scratch.export.program import ExportOptions
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.structures import ImageList, Result

TOLERANCES = {"boxes": 1e-2, "scores": 1e-4, "masks": 1e-3}  # boxes in pixels, others probabilities
# Two detections that differ by more are different ones, not one with an error.
SAME_DETECTION = {"boxes": 1.0, "scores": 0.05}

Run = Callable[[Sequence[Tensor]], Mapping[str, Tensor]]  # the exported model


@dataclass
class Trial:
    """One call of both models.

    Attributes:
        image_size: (height, width) of the input images.
        num_detections: of the model in Python, per image.
        unmatched: number of detections that only one of the two models has.
        errors: largest absolute difference of each output, over the matched detections.
    """

    image_size: tuple[int, int]
    num_detections: list[int] = field(default_factory=list)
    unmatched: int = 0
    errors: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TOLERANCES, 0.0))


@dataclass
class VerificationReport:
    """What was exported, with which versions, and how closely it agrees with the model."""

    format: str
    options: ExportOptions
    versions: dict[str, str]
    trials: list[Trial]

    @property
    def verdict(self) -> Literal["passed", "beyond tolerance", "no detections to compare"]:
        """Passed only if there were detections and both models agree on all of them."""
        for trial in self.trials:
            if trial.unmatched or any(trial.errors[k] > TOLERANCES[k] for k in TOLERANCES):
                return "beyond tolerance"
        found = sum(sum(trial.num_detections) for trial in self.trials)
        return "passed" if found else "no detections to compare"

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "passed": self.verdict == "passed",
            "format": self.format,
            "options": asdict(self.options),
            "versions": self.versions,
            "tolerances": TOLERANCES,
            "trials": [asdict(trial) for trial in self.trials],
        }


@torch.no_grad()
def verify(
    model: GeneralizedRCNN, options: ExportOptions, run: Run, images: Sequence[Tensor]
) -> list[Trial]:
    """Runs both models on the exported size, and on other sizes where they are dynamic.

    Args:
        run: the exported model.
        images: ``[3, H, W]`` in 0-1; they are resized to each size.
    """
    height, width = options.image_size
    sizes, batches = [(height, width)], [options.batch]
    if options.dynamic:
        sizes += [(width, height), (height + 64, width + 32)]
        batches = [1, 2]
    return [
        _try(model, options, run, [images[n % len(images)] for n in range(batch)], size)
        for size in sizes
        for batch in batches
    ]


def _try(
    model: GeneralizedRCNN,
    options: ExportOptions,
    run: Run,
    images: Sequence[Tensor],
    size: tuple[int, int],
) -> Trial:
    """One call with ``images`` resized to ``size``; preprocessed images are padded to it."""
    transform = model.transform
    inner = (size[0] - size[0] // 8, size[1]) if options.preprocessed else size
    resized = torch.cat([F.interpolate(image[None], inner, mode="area") for image in images])
    sizes = torch.tensor([inner], device=resized.device).repeat(len(images), 1)
    if options.preprocessed:
        resized = F.pad(transform.normalize(resized), (0, 0, 0, size[0] - inner[0]))
        found = model.run_batch(ImageList(resized, sizes)).detections
        results = transform.postprocess(found, sizes, [size] * len(images))
        for n, result in enumerate(results):
            result["boxes"] = found.boxes[n, : len(result["boxes"])]  # in pixels of the batch
    else:
        stages = model.run_stages(list(resized))
        found, results = stages.detections, stages.results

    outputs = run(options.inputs(resized, sizes))
    trial = Trial(size)
    for n, expected in enumerate(results):
        if found.masks is not None:
            expected["masks"] = found.masks[n, : len(expected["scores"])]  # not pasted
        exported = dict(outputs)
        if options.batched:
            count = int(exported.pop("num_detections")[n])
            exported = {name: value[n, :count] for name, value in exported.items()}
        _compare(trial, expected, exported, None if options.raw_masks else transform.paste)
    return trial


def _compare(
    trial: Trial, expected: Result, exported: Mapping[str, Tensor], paste: Any | None
) -> None:
    """Adds one image to ``trial``; with ``paste``, the exported masks are pasted ones."""
    ours, theirs = match(expected, exported)
    trial.num_detections.append(len(expected["scores"]))
    trial.unmatched += len(expected["scores"]) + len(exported["scores"]) - 2 * len(ours)
    pairs = {
        name: (expected[name][ours], exported[name][theirs])
        for name in ("boxes", "scores", "masks")
        if name in expected
    }
    if paste is not None and "masks" in pairs:
        # Pasting rounds boxes to whole pixels, so that a difference of 1e-6 can move a mask by one
        # pixel. Boxes are compared by themselves; masks are pasted into the same boxes.
        masks, pasted = pairs["masks"]
        size = (pasted.shape[-2], pasted.shape[-1])
        pairs["masks"] = (paste(masks, exported["boxes"][theirs], size), pasted)
    for name, (one, other) in pairs.items():
        difference = float((one - other).abs().max()) if len(ours) else 0.0
        trial.errors[name] = max(trial.errors[name], difference)


def match(expected: Mapping[str, Tensor], exported: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Pairs detections of the two models: indices into both, int64 of equal length.

    The order of detections does not matter, as nearly equal scores may be sorted either way. Each
    detection, best score first, is paired with the closest box of its label.
    """
    boxes = (expected["boxes"][:, None] - exported["boxes"]).abs().amax(2)  # [D, D']
    scores = (expected["scores"][:, None] - exported["scores"]).abs()
    same = expected["labels"][:, None] == exported["labels"]
    distance = boxes.masked_fill(~(same & (scores < SAME_DETECTION["scores"])), torch.inf)
    pairs = []
    for one in range(len(distance)):
        other = int(distance[one].argmin()) if distance.shape[1] else 0
        if distance.shape[1] and distance[one, other] < SAME_DETECTION["boxes"]:
            pairs.append((one, other))
            distance[:, other] = torch.inf
    ours, theirs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return ours, theirs
