"""Losses and gradients equal torchvision's on real annotated images (MASKRCNN_DATA)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor, nn

from maskrcnn_scratch.backbone import FrozenBatchNorm2d
from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.parity.losses import (
    LOSS_TOLERANCE,
    both_losses,
    gradient_check,
    in_double,
    loss_check,
    trainable_maskrcnn,
    training_reference,
)
from maskrcnn_scratch.parity.photographs import photographs
from maskrcnn_scratch.structures import Target

MIN_SIZE = 96
SAMPLES = 16  # proposals per image


@pytest.fixture(scope="module")
def batch(data_root: Path) -> tuple[Sequence[Tensor], Sequence[Target]]:
    """Images with no object, one, the most of any, and 60 or more from another data set."""
    coco = CocoDataset(
        data_root / "coco_tiny/annotations/instances_train2017.json",
        data_root / "coco_tiny/train2017",
    )
    nuclei = CocoDataset(data_root / "nuclei/instances_val.json", data_root / "nuclei/val")
    items = [coco[index] for index in range(len(coco))]
    counts = [len(target["labels"]) for _, target in items]
    chosen = [items[counts.index(0)], items[counts.index(1)]]
    chosen.append(items[counts.index(max(counts))])
    crowded = next(i for i in range(len(nuclei)) if len(nuclei[i][1]["labels"]) >= 60)
    chosen.append(nuclei[crowded])
    images, targets = zip(*chosen, strict=True)
    fields = ("boxes", "labels", "masks")
    return images, [{field: target[field] for field in fields} for target in targets]


@pytest.mark.slow
@pytest.mark.parametrize("norm_layer", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_losses_and_gradients(
    norm_layer: type[nn.Module], batch: tuple[Sequence[Tensor], Sequence[Target]]
) -> None:
    images, targets = batch
    model = trainable_maskrcnn(norm_layer, photographs()[0], MIN_SIZE)
    reference = training_reference(model, SAMPLES)
    ours, theirs = both_losses(model, reference, images, targets)
    check = loss_check("losses", ours, theirs, LOSS_TOLERANCE)
    assert check.passed, check

    del ours, theirs, reference
    model.double()
    reference = training_reference(model, SAMPLES)
    both_losses(model, reference, *in_double(images, targets), backward=True)
    check = gradient_check("gradients", model, reference)
    assert check.passed, check
