"""Every check of the parity with torchvision, in order.

Each check gives our part the input that torchvision's part had, on calibrated random weights
(``calibrate``), so that the first check that fails names the part that diverges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
from maskrcnn_scratch.parity.compare import Check
from maskrcnn_scratch.parity.losses import losses_checks, random_target
from maskrcnn_scratch.parity.model import Agreement, model_check, summarize
from maskrcnn_scratch.parity.ops import op_checks
from maskrcnn_scratch.parity.photographs import awkward_images, photographs
from maskrcnn_scratch.parity.reference import Recording, reference_of
from maskrcnn_scratch.parity.stages import stage_checks

# Seeds of the weights and the logit added to their background: from a hundred detections per image
# down to a few.
WEIGHT_SETS = ((0, 2.5), (1, 5.0), (2, 6.0))
OBJECTS = (0, 1, 64)  # in the images that the losses are compared on


def parity_checks(
    device: torch.device, images: Sequence[Tensor] | None, min_size: int
) -> Iterator[Check]:
    """All checks, from single ops to the whole model.

    Args:
        images: ``[3, H, W]`` each; by default eight photographs and some awkward sizes.
        min_size: shorter side that images are resized to.
    """
    yield from op_checks(device)
    pictures = photographs() if images is None else list(images)
    pictures = [picture.to(device) for picture in pictures]
    whole: list[Check] = []
    for seed, background_logit in WEIGHT_SETS:
        model = calibrated_maskrcnn(
            seed, pictures[0].cpu(), background_logit=background_logit,
            min_size=min_size, max_size=int(min_size * 1333 / 800),
        ).to(device)  # fmt: skip
        reference = reference_of(model)
        batches = [[picture] for picture in pictures]
        if images is None and seed == WEIGHT_SETS[-1][0]:
            size = (min_size * 5 // 2, min_size * 15 // 4)  # 2000 x 3000, its masks take 5 GB
            tiny, strip, grey, large = (image.to(device) for image in awkward_images(size))
            batches += [[pictures[0], tiny, strip, grey], [large]]
        agreements: list[Agreement] = []
        for index, batch in enumerate(batches):
            recording = Recording(reference, batch)
            with torch.no_grad():
                if index == 0:
                    yield from _named(stage_checks(model, recording, batch), f"weights {seed}")
                stages = model.run_stages(batch)
            check, agreement = model_check(f"weights {seed}, batch {index}", stages, recording)
            agreements.append(agreement)
            if not check.passed:
                whole.append(check)
        whole.append(summarize(f"{len(batches)} batches, weights {seed}", agreements))
    yield from whole
    if images is None:
        targets = [random_target(pictures[n], count, n) for n, count in enumerate(OBJECTS)]
        batches = [([pictures[n]], [targets[n]]) for n in range(len(OBJECTS))]
        batches.append((pictures[: len(OBJECTS)], targets))
        yield from losses_checks(batches, pictures[0].cpu())


def _named(checks: Iterator[Check], suffix: str) -> Iterator[Check]:
    for check in checks:
        yield replace(check, name=f"{check.name}, {suffix}")
