"""The complete model, its losses and its gradients in float64, where rounding hides nothing.

In float32 two correct models differ: with random weights a ResNet multiplies rounding by about four
per stage, and a few of a detector's thousands of decisions are so close that this changes them. In
float64 the same differences are 5e8 times smaller, so that the weights need not be damped
(``calibrate.RESIDUAL_SCALE``) and no detection may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from maskrcnn_scratch.faster_rcnn import FasterRCNN
from maskrcnn_scratch.parity.compare import Check
from maskrcnn_scratch.parity.losses import (
    both_losses,
    gradient_check,
    in_double,
    loss_check,
    random_target,
    training_reference,
)
from maskrcnn_scratch.parity.model import model_check
from maskrcnn_scratch.parity.reference import Recording, reference_of

BOX_TOLERANCE = 1e-8  # pixels
SCORE_TOLERANCE = MASK_TOLERANCE = 1e-9
LOSS_TOLERANCE = 1e-10  # relative; the tolerance of gradients is that of ``losses``
OBJECTS = 8


def float64_checks(
    model: FasterRCNN, images: Sequence[Tensor], parts: Sequence[str]
) -> Iterator[Check]:
    """Detections on all images; losses and gradients on the first.

    Args:
        model: one of the four models, in eval mode; it is changed to float64.
        images: ``[3, H, W]`` in 0-1 each.
        parts: of ``names.PARTS["float64"]``.
    """
    model.double()
    if "detections" in parts:
        reference = reference_of(model)
        for n, image in enumerate(images):
            yield _detections_check(f"detections, image {n}", model, reference, image.double())
        del reference
    if {"losses", "gradients"} & {*parts}:
        yield from _training_checks(model, images[0], parts)


@torch.no_grad()
def _detections_check(
    name: str, model: FasterRCNN, reference: GeneralizedRCNN, image: Tensor
) -> Check:
    recording = Recording(reference, [image])
    check, agreement = model_check(name, model, [image], recording)
    passed = (
        not agreement.differences
        and agreement.boxes <= BOX_TOLERANCE
        and max(agreement.scores, agreement.masks) <= SCORE_TOLERANCE
    )
    tolerance = f"{BOX_TOLERANCE:.0e} px, {SCORE_TOLERANCE:.0e}, {MASK_TOLERANCE:.0e}; none differs"
    relative = agreement.boxes / max(image.shape[-2:])
    return replace(check, level="float64", relative=relative, tolerance=tolerance, passed=passed)


def _training_checks(model: FasterRCNN, image: Tensor, parts: Sequence[str]) -> Iterator[Check]:
    images, targets = in_double([image], [random_target(image, OBJECTS, seed=0)])
    model.train().requires_grad_(True)
    reference = training_reference(model)
    ours, theirs = both_losses(model, reference, images, targets, backward="gradients" in parts)
    if "losses" in parts:
        check = loss_check(f"losses, {OBJECTS} objects", ours, theirs, LOSS_TOLERANCE)
        yield replace(check, level="float64")
    if "gradients" in parts:
        check = gradient_check(f"gradients, {OBJECTS} objects", model, reference)
        yield replace(check, level="float64")
