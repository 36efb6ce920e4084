"""What the page shows of proposals, the box head, both NMS steps and the detections.

Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.levels import pooling_levels, pooling_scales
from maskrcnn_scratch.inspect.packed import pack, pack_probabilities
from maskrcnn_scratch.inspect.pictures import ColorBasis
from maskrcnn_scratch.inspect.provenance import provenance
from maskrcnn_scratch.inspect.sampling import roi_align_grid
from maskrcnn_scratch.inspect.selection import Selection, refined_boxes
from maskrcnn_scratch.inspect.suppression import NO_RANK, suppressed_by
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.structures import StageOutputs, boxes_to_rois

MASK_THRESHOLD = 0.5
CLASS_MASKS = 8  # masks of other classes that are shown of a detection
WITH_CLASS_MASKS = 100  # detections that have them
SOFT_SIDE = 80  # pixels of the longer side of the picture of a pasted soft mask
HARD_SIDE = 400  # and of a thresholded one; larger ones are reduced


def collect_selection(selection: Selection | None) -> dict[str, Any] | None:
    """Candidates of an NMS, what became of them, and who suppressed whom."""
    if selection is None:
        return None
    suppression = suppressed_by(selection)
    kept = torch.full_like(selection.parents, NO_RANK)
    kept[selection.kept] = torch.arange(len(selection.kept), device=kept.device)
    return {
        "boxes": pack(selection.boxes),
        "scores": pack(selection.scores),
        "groups": pack(selection.groups),
        "parents": pack(selection.parents),
        "kept": pack(kept),
        "threshold": selection.iou_threshold,
        "limit": selection.max_out,
        "rank": None if suppression is None else pack(suppression.rank),
        "suppressor": None if suppression is None else pack(suppression.suppressor),
        "iou": None if suppression is None else pack(suppression.iou),
    }


def collect_proposals(
    model: GeneralizedRCNN,
    stages: StageOutputs,
    selection: Selection | None,
    bases: Mapping[str, ColorBasis],
) -> dict[str, Any]:
    """The proposals, the level that each is pooled from, and its pooled features as colours."""
    count = int(stages.proposals.counts[0])
    boxes = stages.proposals.boxes[0, :count]
    pool = model.roi_heads.box_roi_pool
    levels = pooling_levels(pool, stages, boxes)
    return {
        "boxes": pack(boxes),
        "scores": pack(stages.proposals.scores[0, :count]),
        "anchors": pack(stages.proposals.anchor_indices[0, :count]),
        "candidates": None if selection is None else pack(selection.kept),
        "levels": None if levels is None else pack(levels),
        "pool": describe_pool(pool, stages),
        "pooled": pooled_colors(pool, stages, boxes, levels, bases),
    }


def describe_pool(pool: Any, stages: StageOutputs) -> dict[str, Any] | None:
    """What the page needs to draw RoIAlign; None for a pooler that it does not know."""
    scales = pooling_scales(pool, stages)
    if scales is None or roi_align_grid(pool, [0.0, 0.0, 1.0, 1.0], scales[0]) is None:
        return None
    return {
        "names": pool.featmap_names,
        "scales": scales,
        "output_size": list(pool.output_size),
        "sampling_ratio": pool.sampling_ratio,
        "aligned": pool.aligned,
        "canonical_scale": pool.canonical_scale,
        "canonical_level": pool.canonical_level,
    }


def pooled_colors(
    pool: Any,
    stages: StageOutputs,
    boxes: Tensor,
    levels: Tensor | None,
    bases: Mapping[str, ColorBasis],
) -> dict[str, Any] | None:
    """Pooled features of ``boxes [R, 4]`` in the colours of their level, uint8 ``[R, S, S, 3]``."""
    if levels is None or len(boxes) == 0:
        return None
    pooled = pool(stages.features, boxes_to_rois(boxes[None]), [stages.images.padded_size])
    pooled = pooled.float().cpu()  # [R, F, S, S]
    colors = np.zeros((len(pooled), *pooled.shape[2:], 3), np.uint8)
    for index, name in enumerate(pool.featmap_names):
        chosen = (levels == index).cpu()
        if bool(chosen.any()):
            colors[chosen.numpy()] = bases[name].colors(pooled[chosen])
    return pack(colors)


def collect_box_head(model: GeneralizedRCNN, stages: StageOutputs) -> dict[str, Any]:
    """Class probabilities of every proposal, and the refined box of its best class."""
    count = int(stages.proposals.counts[0])
    scores = stages.class_logits[0, :count].softmax(1)  # [P, C]
    label = scores[:, 1:].argmax(1) + 1 if count else scores.new_zeros(0, dtype=torch.int64)
    proposals = torch.arange(count, device=label.device)
    refined = refined_boxes(model, stages, 0, proposals, label)
    return {
        "scores": pack_probabilities(scores),
        "labels": pack(label),
        "refined": None if refined is None else pack(refined),
    }


def collect_detections(
    model: GeneralizedRCNN, stages: StageOutputs, bases: Mapping[str, ColorBasis]
) -> dict[str, Any]:
    """The detections with their provenance and masks."""
    count = int(stages.detections.counts[0])
    found = stages.detections
    boxes = found.boxes[0, :count]
    origins = [provenance(model, stages, 0, detection) for detection in range(count)]
    content: dict[str, Any] = {
        "boxes": pack(boxes),
        "page_boxes": pack(stages.results[0]["boxes"]),
        "labels": found.labels[0, :count].tolist(),
        "scores": found.scores[0, :count].tolist(),
        "origins": [
            {
                "proposal": origin.proposal,
                "class_row": origin.class_row,
                "anchor": origin.anchor,
                "anchor_box": list(origin.anchor_box),
                "place": None if origin.place is None else list(origin.place),
                "level_rank": origin.level_rank,
                "box_level": origin.box_level,
                "mask_level": origin.mask_level,
            }
            for origin in origins
        ],
        "masks": None,
    }
    if found.masks is None or "masks" not in stages.results[0]:
        return content
    pool = model.roi_heads.mask_roi_pool
    levels = pooling_levels(pool, stages, boxes)
    pasted = [
        _pasted(soft, box)
        for soft, box in zip(
            stages.results[0]["masks"][:, 0], stages.results[0]["boxes"].tolist(), strict=True
        )
    ]
    content["masks"] = {
        "own": pack_probabilities(found.masks[0, :count, 0], 255),
        "classes": _class_masks(model, stages, boxes[:WITH_CLASS_MASKS]),
        "pasted": pasted,
        "pool": describe_pool(pool, stages),
        "pooled": pooled_colors(pool, stages, boxes, levels, bases),
    }
    return content


def _class_masks(
    model: GeneralizedRCNN, stages: StageOutputs, boxes: Tensor
) -> dict[str, Any] | None:
    """Masks of the classes with the best scores; None where the predictor gives one mask alone."""
    if len(boxes) == 0:
        return None
    rois = boxes_to_rois(boxes[None])
    logits = model.roi_heads.predict_masks(stages.features, rois, stages.images.padded_size)
    num_classes = stages.class_logits.shape[2]
    if logits.dim() != 4 or logits.shape[1] != num_classes:
        return None
    proposals = stages.detections.proposal_indices[0, : len(boxes)]
    scores = stages.class_logits[0, proposals].softmax(1)[:, 1:]  # [D, C - 1]
    labels = scores.topk(min(CLASS_MASKS, num_classes - 1), dim=1).indices + 1  # [D, CLASS_MASKS]
    each = torch.arange(len(boxes), device=labels.device)[:, None]
    masks = logits[each, labels].sigmoid()
    return {"labels": pack(labels), "masks": pack_probabilities(masks, 255)}


def _pasted(soft: Tensor, box: list[float]) -> dict[str, Any]:
    """A pasted mask around its box: a small soft picture, and the thresholded one as RLE."""
    height, width = soft.shape
    margin_x, margin_y = (box[2] - box[0]) / 14 + 1, (box[3] - box[1]) / 14 + 1
    left = min(max(int(box[0] - margin_x), 0), width - 1)
    top = min(max(int(box[1] - margin_y), 0), height - 1)
    right = min(max(int(box[2] + margin_x) + 1, left + 1), width)
    bottom = min(max(int(box[3] + margin_y) + 1, top + 1), height)
    crop = soft[top:bottom, left:right].float()
    hard = _reduced(crop, HARD_SIDE) >= MASK_THRESHOLD
    return {
        "corner": [left, top],
        "size": list(crop.shape),
        "soft": pack_probabilities(_reduced(crop, SOFT_SIDE), 255),
        "hard_size": list(hard.shape),
        "counts": rle.encode(hard.numpy(force=True))["counts"],
    }


def _reduced(picture: Tensor, longer_side: int) -> Tensor:
    """``[H, W]`` with a longer side of at most ``longer_side``; a smaller one as it is."""
    scale = longer_side / max(picture.shape)
    if scale >= 1:
        return picture
    size = [max(1, round(side * scale)) for side in picture.shape]
    return torch.nn.functional.interpolate(picture[None, None], size=size, mode="area")[0, 0]
