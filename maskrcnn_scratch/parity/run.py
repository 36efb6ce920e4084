"""Every check of the parity with torchvision, in order.

Each check gives our part the input that torchvision's part had, on calibrated random weights
(``calibrate``), so that the first check that fails names the part that diverges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from maskrcnn_scratch.backbone import FrozenBatchNorm2d
from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
from maskrcnn_scratch.parity.compare import Check
from maskrcnn_scratch.parity.losses import Batch, losses_checks, random_target
from maskrcnn_scratch.parity.model import Agreement, model_check, summarize
from maskrcnn_scratch.parity.ops import op_checks
from maskrcnn_scratch.parity.photographs import photographs, unusual_images
from maskrcnn_scratch.parity.reference import Recording, in_channels_last, reference_of
from maskrcnn_scratch.parity.stages import stage_checks

# Seed of the weights -> logit added to their background: from a hundred detections per image down
# to a few.
WEIGHT_SETS = {0: 2.5, 1: 5.0, 2: 6.0}
NORM_LAYERS: tuple[type[nn.Module], ...] = (FrozenBatchNorm2d, nn.BatchNorm2d)
OBJECTS = (0, 1, 64)  # in the images that the losses are compared on


def parity_checks(
    device: torch.device, images: Sequence[Tensor] | None, min_size: int
) -> Iterator[Check]:
    """All checks, from single ops to the complete model and its losses.

    Args:
        images: ``[3, H, W]`` each; by default eight photographs and some unusual sizes.
        min_size: shorter side that images are resized to.
    """
    yield from op_checks(device)
    pictures = photographs() if images is None else list(images)
    pictures = [picture.to(device) for picture in pictures]
    for seed in WEIGHT_SETS:
        batches = [[picture] for picture in pictures]
        if images is None and seed == max(WEIGHT_SETS):  # few detections, so few large masks
            batches += unusual_batches(pictures[0], min_size)
        yield from model_checks(seed, batches, min_size)
    if images is None:
        for norm_layer in NORM_LAYERS:
            yield from losses_checks(norm_layer, loss_batches(pictures), pictures[0].cpu())


def model_checks(seed: int, batches: Sequence[list[Tensor]], min_size: int) -> Iterator[Check]:
    """Stages on the first batch, then the complete model on all, with one of ``WEIGHT_SETS``."""
    model = calibrated_maskrcnn(
        seed, batches[0][0].cpu(), background_logit=WEIGHT_SETS[seed],
        min_size=min_size, max_size=int(min_size * 1333 / 800),
    ).to(batches[0][0].device)  # fmt: skip
    reference = in_channels_last(reference_of(model))
    agreements: list[Agreement] = []
    for index, batch in enumerate(batches):
        recording = Recording(reference, batch)
        with torch.no_grad():
            if index == 0:
                for check in stage_checks(model, recording, batch):
                    yield replace(check, name=f"{check.name}, weights {seed}")
            stages = model.run_stages(batch)
        check, agreement = model_check(f"weights {seed}, batch {index}", stages, recording)
        agreements.append(agreement)
        if not check.passed:
            yield check
    yield summarize(f"{len(batches)} batches, weights {seed}", agreements)


def unusual_batches(photograph: Tensor, min_size: int) -> list[list[Tensor]]:
    """Images of very different sizes in one batch, and an image that is made smaller."""
    tiny, strip, grey, large = (image.to(photograph.device) for image in unusual_images(min_size))
    return [[photograph, tiny, strip, grey], [large]]


def loss_batches(pictures: Sequence[Tensor]) -> list[Batch]:
    """One image each with as many objects as ``OBJECTS`` says, then all of them in one batch."""
    targets = [random_target(pictures[n], count, n) for n, count in enumerate(OBJECTS)]
    single: list[Batch] = [([pictures[n]], [targets[n]]) for n in range(len(OBJECTS))]
    return [*single, (pictures[: len(OBJECTS)], targets)]
