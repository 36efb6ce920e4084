"""Answers of chapters 11 and 12: what the model learns from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from tour_answers.shared import UNWEIGHTED, model, targets_and_stages
from tour_helpers import held_out, shapes, stages, trained, untrained

from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.targets.matcher import Matcher


def answer_11a() -> None:
    """Objects without a positive anchor."""
    anchors = stages().anchors
    strict, shown = Matcher(0.7, 0.3, allow_low_quality_matches=False), 0
    for n, (_, target) in enumerate(held_out()):
        matched = strict(target["boxes"], anchors)
        best = box_iou(target["boxes"], anchors).amax(1)
        for g, box in enumerate(target["boxes"]):
            if not (matched == g).any() and shown < 8:
                width, height = (box[2:] - box[:2]).tolist()
                print(f"image {n}, object {g}: {height:.0f} x {width:.0f}, best IoU {best[g]:.2f}")
                shown += 1
    print("Their size or shape lies between those of the anchors, so that no IoU reaches 0.7.")


def answer_11b() -> None:
    """IoU of positive anchors before and after decoding."""
    before, after = [], []
    for target, s in targets_and_stages():
        match = trained().model.rpn.proposal_matcher(target["boxes"], s.anchors)
        positive = (match >= 0).nonzero().flatten()
        gt = target["boxes"][match[positive]]
        decoded = UNWEIGHTED.decode(s.pred_bbox_deltas[0, positive], s.anchors[positive])
        rows = torch.arange(len(positive))
        before.append(box_iou(s.anchors[positive], gt)[rows, rows])
        after.append(box_iou(decoded, gt)[rows, rows])
    print(f"{torch.cat(before).mean():.2f} -> {torch.cat(after).mean():.2f}")


def share_of_worst(losses: Tensor) -> float:
    """What the largest 5% of ``losses [S]`` are of their sum."""
    return (losses.topk(max(1, len(losses) // 20)).values.sum() / losses.sum()).item()


def answer_12a() -> None:
    """Share of the worst samples in a loss."""
    image, target = shapes()
    changed, shares = model(), {}
    heads = changed.roi_heads

    def classifier(class_logits: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(class_logits, labels, reduction="none", ignore_index=-1)
        shares["loss_classifier"] = share_of_worst(each)
        return each.mean()

    def mask(logits: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
        rows = torch.arange(len(labels))
        own = logits[rows, labels.clamp(min=0)]
        each = F.binary_cross_entropy_with_logits(own, wanted, reduction="none").flatten()
        shares["loss_mask"] = share_of_worst(each)
        return each.mean()

    heads.loss_classifier, heads.loss_mask = classifier, mask
    with torch.no_grad():
        changed.losses([image], [target])
    for name, share in shares.items():
        print(f"{name}: the worst 5% of the samples (of the pixels, for masks) have {share:.0%}")


@torch.no_grad()
def answer_12b() -> None:
    """Losses before and after training."""
    image, target = shapes()
    before, after = (m.losses([image], [target]) for m in (untrained(), trained().model))
    for name in before:
        print(f"{name:18} {before[name]:.4f} -> {after[name]:.4f}")
