"""Answers of chapters 8 to 10: RoIAlign, detections and masks."""

from __future__ import annotations

import torch
from torch import Tensor
from tour_answers.shared import all_stages, model, print_aps
from tour_helpers import stages, trained

from maskrcnn_scratch.conventions import paste_masks_subpixel
from maskrcnn_scratch.ops import batched_nms_padded, roi_align
from maskrcnn_scratch.ops.boxes import box_iou


def answer_8a() -> None:
    """RoIAlign with ``aligned=True``."""
    changed = model()
    for pool in (changed.roi_heads.box_roi_pool, changed.roi_heads.mask_roi_pool):
        pool.aligned = True
    moved, lost = [], 0
    for before, after in zip(all_stages(), all_stages(changed), strict=True):
        old, new = before.results[0], after.results[0]
        sure = old["scores"] > 0.5
        iou = box_iou(old["boxes"][sure], new["boxes"])
        iou[old["labels"][sure][:, None] != new["labels"]] = 0
        for box, row in zip(old["boxes"][sure], iou, strict=True):
            if row.max() < 0.5:
                lost += 1
            else:
                moved.append((new["boxes"][row.argmax()] - box).abs().mean())
    print(f"Of the detections above 0.5 {lost} are lost; the others move by "
          f"{torch.stack(moved).mean():.2f} pixels on average.")  # fmt: skip
    print_aps(changed, ": weights want the convention they were trained with.")


def answer_8b() -> None:
    """Fewer samples per bin."""
    s = stages()
    feature, boxes = s.features["0"], s.detections.boxes[0, : s.detections.counts[0]]
    exact = roi_align(feature, [boxes], (7, 7), 0.25, 8)
    for ratio in (1, 2):
        pooled = roi_align(feature, [boxes], (7, 7), 0.25, ratio)
        error = (pooled - exact).norm() / exact.norm()
        print(f"{ratio} x {ratio} samples: {float(error):.1%} off")


def answer_9a() -> None:
    """Class-agnostic NMS."""

    def nms(boxes: Tensor, scores: Tensor, groups: Tensor, *rest: float) -> tuple[Tensor, Tensor]:
        iou_threshold, max_out, _ = rest
        return batched_nms_padded(
            boxes, scores, torch.zeros_like(groups), iou_threshold, int(max_out), 1
        )

    changed = model()
    changed.roi_heads.nms = nms
    counts = [sum(int(s.detections.counts) for s in all_stages(m)) for m in (model(), changed)]
    print(f"{counts[0]} -> {counts[1]} detections: second opinions on the same box disappear.")
    print_aps(changed)


def answer_9b() -> None:
    """Proposals with several detections."""
    twice = total = 0
    for s in all_stages():
        parents = s.detections.proposal_indices[0, : s.detections.counts[0]]
        total += len(parents.unique())
        twice += int((parents.bincount() > 1).sum())
    print(f"{twice} of {total} proposals: each class is decided on its own.")


def answer_10a() -> None:
    """Masks pasted without rounding."""
    changed = model()
    changed.transform.paste = paste_masks_subpixel
    print_aps(changed)
    print("The same masks, placed without rounding.")


@torch.no_grad()
def answer_10b() -> None:
    """Masks of the other classes."""
    s, heads = stages(), trained().model.roi_heads
    rois = torch.cat((torch.zeros(1, 1), s.detections.boxes[0, :1]), 1)
    masks = heads.predict_masks(s.features, rois, s.images.padded_size)[0].sigmoid() > 0.5
    label = int(s.detections.labels[0, 0])
    for other, name in trained().class_names.items():
        both, either = (masks[other] & masks[label]).sum(), (masks[other] | masks[label]).sum()
        print(
            f"{name:9} IoU with the predicted class's mask {float(both / either.clamp(min=1)):.2f}"
        )
    print("Each class draws its own idea of the object; the background channel is never trained.")
