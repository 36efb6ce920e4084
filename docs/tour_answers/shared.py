"""What several answers need: models to change, and what they find in the held-out images."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from tour_helpers import held_out, trained

from maskrcnn_scratch import maskrcnn_resnet50_fpn
from maskrcnn_scratch.evaluation.model_results import evaluate_model
from maskrcnn_scratch.mask_rcnn import MaskRCNN
from maskrcnn_scratch.ops.boxes import BoxCoder, box_iou
from maskrcnn_scratch.structures import StageOutputs, Target

UNWEIGHTED = BoxCoder((1.0, 1.0, 1.0, 1.0))


def model() -> MaskRCNN:
    """A copy of the trained model, to change."""
    return copy.deepcopy(trained().model)


def resnet50() -> MaskRCNN:
    """The large model, with random weights."""
    return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()


@torch.no_grad()
def all_stages(changed: MaskRCNN | None = None) -> list[StageOutputs]:
    """What ``changed``, or the trained model, computes for each held-out image."""
    changed = changed or trained().model
    return [changed.run_stages([image]) for image, _ in held_out()]


def targets_and_stages(changed: MaskRCNN | None = None) -> Iterator[tuple[Target, StageOutputs]]:
    """The same, and the ground truth of each image."""
    for (_, target), outputs in zip(held_out(), all_stages(changed), strict=True):
        yield target, outputs


def ap(changed: MaskRCNN) -> str:
    """Box and mask AP on the held-out images."""
    scores = evaluate_model(changed, held_out())
    return ", ".join(f"{kind} AP {score.stats[0]:.3f}" for kind, score in scores.items())


def print_aps(changed: MaskRCNN, conclusion: str = "") -> None:
    """Of the trained model and of ``changed``."""
    print(f"{ap(model())} -> {ap(changed)}{conclusion}")


def found(changed: MaskRCNN) -> str:
    """How many objects have a detection of their class with a score and an IoU above 0.5."""
    hits = objects = 0
    for target, s in targets_and_stages(changed):
        result = {k: v[s.results[0]["scores"] > 0.5] for k, v in s.results[0].items()}
        iou = box_iou(target["boxes"], result["boxes"])
        same = target["labels"][:, None] == result["labels"]
        objects += len(target["labels"])
        if iou.numel():
            hits += int(((iou > 0.5) & same).any(1).sum())
    return f"{hits} of {objects} objects"
