"""Whether an exported model finds what the model in Python finds, measured and written down.

Letters: ``N`` images, ``D`` detections of the model, ``E`` detections of the exported one.
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

TOLERANCES = {"boxes": 1e-2, "scores": 1e-4, "masks": 1e-3}  # pixels, and probabilities
NEAR = {"boxes": 1.0, "scores": 0.05}  # beyond these it is another detection

Run = Callable[[Sequence[Tensor]], Mapping[str, Tensor]]  # the exported model


@dataclass
class Trial:
    """One call of both models.

    Attributes:
        image_size: (height, width) of the images that went in.
        num_detections: of the model, image by image.
        unmatched: detections that only one of the two models has.
        errors: the largest difference of each output, over the detections that both have.
    """

    image_size: tuple[int, int]
    num_detections: list[int] = field(default_factory=list)
    unmatched: int = 0
    errors: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TOLERANCES, 0.0))


@dataclass
class Certificate:
    """What was exported, with what, and how well it agrees."""

    format: str
    options: ExportOptions
    versions: dict[str, str]
    trials: list[Trial]

    @property
    def verdict(self) -> Literal["good", "beyond tolerance", "nothing to compare"]:
        """Good only where there were detections, and all of them in both models."""
        for trial in self.trials:
            if trial.unmatched or any(trial.errors[k] > TOLERANCES[k] for k in TOLERANCES):
                return "beyond tolerance"
        found = sum(sum(trial.num_detections) for trial in self.trials)
        return "good" if found else "nothing to compare"

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "good": self.verdict == "good",
            "format": self.format,
            "options": asdict(self.options),
            "versions": self.versions,
            "tolerances": TOLERANCES,
            "trials": [asdict(trial) for trial in self.trials],
        }


@torch.no_grad()
def certify(
    model: GeneralizedRCNN, options: ExportOptions, run: Run, images: Sequence[Tensor]
) -> list[Trial]:
    """Runs both models on the size they were exported for, and on others where that is free.

    Args:
        run: the exported model.
        images: ``[3, H, W]`` in 0-1, resized to the sizes that are tried.
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
    """One call with ``images`` resized to ``size``, padding included where that is done outside."""
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
        # Pasting cuts boxes to whole pixels, so that a difference of 1e-6 can move a mask by one:
        # its input is the same box, which has been compared, for both.
        masks, pasted = pairs["masks"]
        size = (pasted.shape[-2], pasted.shape[-1])
        pairs["masks"] = (paste(masks, exported["boxes"][theirs], size), pasted)
    for name, (one, other) in pairs.items():
        difference = float((one - other).abs().max()) if len(ours) else 0.0
        trial.errors[name] = max(trial.errors[name], difference)


def match(expected: Mapping[str, Tensor], exported: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which detection is which: indices into both, equally long.

    Order does not count, as nearly equal scores may change places. Those of one label are matched
    to the nearest box, the best score first.
    """
    boxes = (expected["boxes"][:, None] - exported["boxes"]).abs().amax(2)  # [D, E]
    scores = (expected["scores"][:, None] - exported["scores"]).abs()
    same = expected["labels"][:, None] == exported["labels"]
    distance = boxes.masked_fill(~(same & (scores < NEAR["scores"])), torch.inf)
    pairs = []
    for one in range(len(distance)):
        other = int(distance[one].argmin()) if distance.shape[1] else 0
        if distance.shape[1] and distance[one, other] < NEAR["boxes"]:
            pairs.append((one, other))
            distance[:, other] = torch.inf
    ours, theirs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return ours, theirs
