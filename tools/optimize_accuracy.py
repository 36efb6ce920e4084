"""How much each option of ``optimize`` changes what a model finds.

    python tools/optimize_accuracy.py [--weights FILE] [--images FOLDER]

The model's own detections are the ground truth. Prints the fraction of them that the optimised
model finds with the same label and nearly the same box, and the optimised model's COCO mask AP.
Without weights, they are random and calibrated; without images, photographs are used.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where tools lies

from maskrcnn_scratch.builders.from_config import load_trained
from maskrcnn_scratch.data.image import read_image
from maskrcnn_scratch.evaluation.coco_ap import score
from maskrcnn_scratch.evaluation.model_results import coco_results, detect_rle
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inference import optimize
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
from maskrcnn_scratch.parity.photographs import photographs

BUCKET = 128  # pixels
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SAME_IOU = 0.9
Found = Sequence[dict[str, Any]]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="file of maskrcnn train, or of torchvision")
    parser.add_argument("--images", type=Path, help="folder")
    options = parser.parse_args()
    images = photographs()
    if options.images:
        files = sorted(options.images.iterdir())
        images = [read_image(file) for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if options.weights:
        model: GeneralizedRCNN = load_trained(options.weights).model
    else:
        model = calibrated_maskrcnn(0, images[0], background_logit=5.0)
    buckets = copy.deepcopy(model)
    buckets.transform.size_divisible = BUCKET
    expected = find(model, images)
    print(f"{len(images)} images, {sum(len(one['boxes']) for one in expected)} detections")
    for name, other in (
        ("folded", optimize(model)),
        ("bfloat16", optimize(model, dtype=torch.bfloat16)),
        (f"padded to multiples of {BUCKET}", buckets),
    ):
        found = find(other, images)
        part, ap = matched(found, expected), average_precision(found, expected, images)
        print(f"{name:30} {part:7.2%} of the detections the same, mask AP {ap:.4f}", flush=True)


def find(model: GeneralizedRCNN, images: Sequence[Tensor]) -> Found:
    """Detections of each image, masks as RLE."""
    return [detect_rle(model, [image])[0] for image in images]


def matched(found: Found, expected: Found) -> float:
    """The fraction of ``expected`` that was found with the same label and nearly the same box."""
    same, number = 0, 0
    for ours, theirs in zip(found, expected, strict=True):
        overlap = box_iou(theirs["boxes"], ours["boxes"])  # [D, D']
        overlap = overlap * (theirs["labels"][:, None] == ours["labels"])
        same += int((overlap >= SAME_IOU).any(dim=1).sum())
        number += len(theirs["boxes"])
    return same / max(number, 1)


def average_precision(found: Found, expected: Found, images: Sequence[Tensor]) -> float:
    """COCO's mask AP of ``found`` where ``expected`` is the ground truth."""
    labels = {int(label) for one in expected for label in one["labels"]}
    identity = {label: label for label in labels}
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    truth = [
        {**entry, "iscrowd": 0, "area": rle.area(entry["segmentation"])}
        for index, one in enumerate(expected)
        for entry in coco_results(one, index, identity)
        if rle.area(entry["segmentation"]) > 0  # an empty mask overlaps nothing, not even itself
    ]
    annotations = {
        "images": [{"id": n, "height": h, "width": w} for n, (h, w) in enumerate(sizes)],
        "categories": [{"id": label, "name": str(label)} for label in sorted(labels)],
        "annotations": [{**entry, "id": n + 1} for n, entry in enumerate(truth)],
    }
    results = [
        entry for index, one in enumerate(found) for entry in coco_results(one, index, identity)
    ]
    most = max(len(one["boxes"]) for one in (*found, *expected))
    return score(annotations, results, max_detections=max(most, 100)).stats[0]


if __name__ == "__main__":
    main()
