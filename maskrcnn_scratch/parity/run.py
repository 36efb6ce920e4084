"""Every check of the parity with torchvision, in order.

Each check gives our part the input that torchvision's part had, on calibrated random weights
(``calibrate``), so that the first check that fails names the part that diverges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from maskrcnn_scratch.backbone import FrozenBatchNorm2d
from maskrcnn_scratch.builders.resnet50_fpn import load_model
from maskrcnn_scratch.conventions import Conventions
from maskrcnn_scratch.faster_rcnn import FasterRCNN
from maskrcnn_scratch.parity.calibrate import Architecture, calibrate, random_model
from maskrcnn_scratch.parity.compare import Check
from maskrcnn_scratch.parity.detectron2 import detectron2_checks
from maskrcnn_scratch.parity.float64 import float64_checks
from maskrcnn_scratch.parity.half import half_checks
from maskrcnn_scratch.parity.losses import Batch, losses_checks, random_target
from maskrcnn_scratch.parity.model import Agreement, model_check, summarize
from maskrcnn_scratch.parity.names import Selection, part_of
from maskrcnn_scratch.parity.ops import op_checks
from maskrcnn_scratch.parity.photographs import photographs, smaller, unusual_images
from maskrcnn_scratch.parity.reference import Recording, in_channels_last, reference_of
from maskrcnn_scratch.parity.replacement import Replacements, replaced_losses_checks
from maskrcnn_scratch.parity.stages import stage_checks

# Seed of the weights -> logit added to their background: from a hundred detections per image down
# to a few.
WEIGHT_SETS = {0: 2.5, 1: 5.0, 2: 6.0}
NORM_LAYERS: tuple[type[nn.Module], ...] = (FrozenBatchNorm2d, nn.BatchNorm2d)
OBJECTS = (0, 1, 64)  # in the images that the losses are compared on
FLOAT64_MIN_SIZE, FLOAT64_LONGER_SIDE, FLOAT64_IMAGES = 300, 500, 2


@dataclass(frozen=True)
class Run:
    """What is compared.

    Args:
        device: where both models run.
        images: ``[3, H, W]`` in 0-1 each; by default eight photographs and some unusual sizes.
        min_size: shorter side that images are resized to.
        selection: which checks are made.
        architecture: of the models with random weights.
        weights: file with trained weights of one of the four models, in place of random ones.
        replacements: parts of our model that are replaced.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    images: Sequence[Tensor] | None = None
    min_size: int = 800
    selection: Selection = field(default_factory=Selection)
    architecture: Architecture = "maskrcnn_resnet50_fpn"
    weights: Path | None = None
    replacements: Replacements = field(default_factory=Replacements)

    @property
    def max_size(self) -> int:
        """Upper limit of the longer side: torchvision's proportion."""
        return int(self.min_size * 1333 / 800)


def parity_checks(run: Run) -> Iterator[Check]:
    """All selected checks, from single ops to the complete model and its losses.

    With replaced parts only checks that use the model are made: modules, stages, the model and its
    losses. The losses are compared for the model of the paper, in float64 for every architecture.
    """
    selected = run.selection.parts
    plain = not run.replacements
    if plain:
        yield from op_checks(run.device, selected("ops"))
        yield from half_checks(run.device, selected("half"))
    pictures = photographs() if run.images is None else list(run.images)
    if plain and selected("detectron2"):
        yield from detectron2_checks(pictures[0], selected("detectron2"))
    pictures = [picture.to(run.device) for picture in pictures]
    if any(selected(group) for group in ("modules", "stages", "model")):
        yield from _all_model_checks(run, pictures)
    if run.images is None and run.architecture == "maskrcnn_resnet50_fpn" and not run.weights:
        if plain:
            for norm_layer in NORM_LAYERS:
                wanted = [
                    p for p in selected("losses") if norm_layer.__name__.lower() in p.split("_")
                ]
                if wanted:
                    checks = losses_checks(norm_layer, loss_batches(pictures), pictures[0].cpu())
                    yield from (c for c in checks if part_of(c.level, c.name) in wanted)
        elif selected("losses"):
            yield from replaced_losses_checks(run.replacements, loss_batches(pictures)[1:3])
    if plain and selected("float64"):
        small = [smaller(picture, FLOAT64_LONGER_SIDE) for picture in pictures[:FLOAT64_IMAGES]]
        size = min(run.min_size, FLOAT64_MIN_SIZE)
        model = _model(replace(run, min_size=size), 0, small[0], residual_scale=1.0)
        yield from float64_checks(model, small, selected("float64"))


def _all_model_checks(run: Run, pictures: Sequence[Tensor]) -> Iterator[Check]:
    for seed in [0] if run.weights else WEIGHT_SETS:
        batches = [[picture] for picture in pictures]
        if run.images is None and seed == max(WEIGHT_SETS):  # few detections, so few large masks
            batches += unusual_batches(pictures[0], run.min_size)
        yield from model_checks(run, seed, batches)


def _model(run: Run, seed: int, photograph: Tensor, **options: float) -> FasterRCNN:
    """The model with one of ``WEIGHT_SETS``, or with the trained weights."""
    sizes = {"min_size": run.min_size, "max_size": run.max_size}
    if run.weights is not None:
        model = load_model(run.weights, conventions=Conventions.torchvision(), **sizes)
    else:
        model = random_model(run.architecture, seed, **sizes)
        calibrate(model, photograph.cpu(), WEIGHT_SETS[seed], **options)
    return model.to(run.device)


def model_checks(run: Run, seed: int, batches: Sequence[list[Tensor]]) -> Iterator[Check]:
    """Stages on the first batch, then the complete model on all, with one of ``WEIGHT_SETS``."""
    model = _model(run, seed, batches[0][0])
    weights = f"weights {seed}" if run.weights is None else f"weights {run.weights.name}"
    selection = run.selection
    reference = in_channels_last(reference_of(model))
    changed = run.replacements.applied_to(model)
    agreements: list[Agreement] = []
    before: list[Agreement] = []
    for index, batch in enumerate(batches if selection.parts("model") else batches[:1]):
        recording = Recording(reference, batch)
        with torch.no_grad():
            if index == 0:
                checks = stage_checks(changed, recording, batch)
                if run.replacements:
                    checks = with_before(checks, stage_checks(model, recording, batch))
                for check in checks:
                    if part_of(check.level, check.name) in selection.parts(check.level):
                        yield replace(check, name=f"{check.name}, {weights}")
            if not selection.parts("model"):
                return
        if run.replacements:
            before.append(model_check("", model, batch, recording)[1])
        check, agreement = model_check(f"{weights}, batch {index}", changed, batch, recording)
        agreements.append(agreement)
        if agreement.unexplained() and not run.replacements:
            yield check
    check = summarize(f"{len(batches)} batches, {weights}", agreements)
    yield from with_before([check], [summarize(check.name, before)] if before else [])


def with_before(checks: Iterable[Check], before: Iterable[Check]) -> Iterator[Check]:
    """``checks``, each with the one of its name in ``before``."""
    known = {check.name: check for check in before}
    for check in checks:
        yield replace(check, before=known.get(check.name))


def unusual_batches(photograph: Tensor, min_size: int) -> list[list[Tensor]]:
    """Images of very different sizes in one batch, and an image that is made smaller."""
    tiny, strip, grey, large = (image.to(photograph.device) for image in unusual_images(min_size))
    return [[photograph, tiny, strip, grey], [large]]


def loss_batches(pictures: Sequence[Tensor]) -> list[Batch]:
    """One image each with as many objects as ``OBJECTS`` says, then all of them in one batch."""
    targets = [random_target(pictures[n], count, n) for n, count in enumerate(OBJECTS)]
    single: list[Batch] = [([pictures[n]], [targets[n]]) for n in range(len(OBJECTS))]
    return [*single, (pictures[: len(OBJECTS)], targets)]
