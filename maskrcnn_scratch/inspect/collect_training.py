"""What the page shows of the image as a training sample.

Shapes: see ``structures``.
"""

from __future__ import annotations

from typing import Any

import torch

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.packed import pack, pack_probabilities
from maskrcnn_scratch.inspect.training_sample import training_sample
from maskrcnn_scratch.structures import StageOutputs, Target

MOST_MASKS = 48  # mask targets that are shown, those with the largest share first


def collect_training(
    model: GeneralizedRCNN, image: torch.Tensor, target: Target, stages: StageOutputs
) -> dict[str, Any]:
    """Samples, targets and shares of one image; see ``training_sample``."""
    sample = training_sample(model, image, target, stages)
    own = sample.scores.gather(1, sample.labels[:, None])[:, 0]  # [B]
    masks = None
    if sample.masks is not None and sample.mask_targets is not None:
        share = sample.shares["loss_mask"]
        order = torch.arange(len(sample.masks))
        if share is not None:
            order = share.argsort(descending=True).cpu()
        order = order[:MOST_MASKS]
        masks = {
            "samples": pack(sample.with_mask.cpu()[order]),
            "targets": pack_probabilities(sample.mask_targets[order], 255),
            "predicted": pack_probabilities(sample.masks[order], 255),
            "shares": None if share is None else pack(share[order]),
            "count": len(sample.masks),
        }
    return {
        "losses": sample.losses,
        "shares": {
            name: None if share is None else pack(share)
            for name, share in sample.shares.items()
            if name != "loss_mask"
        },
        "anchors": pack(sample.anchors),
        "anchor_boxes": pack(stages.anchors[sample.anchors]),
        "anchor_labels": pack(sample.anchor_labels),
        "anchor_objects": pack(sample.anchor_objects),
        "boxes": pack(sample.boxes),
        "labels": pack(sample.labels),
        "objects": pack(sample.objects),
        "own_scores": pack(own),
        "masks": masks,
    }
