"""Answers of chapters 4 to 7: anchors, RPN head, deltas and proposals."""

from __future__ import annotations

import torch
from torch import Tensor
from tour_answers.shared import UNWEIGHTED, ap, model, targets_and_stages
from tour_helpers import held_out, shapes, stages, trained, untrained

from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.rpn.anchors import anchors_of_location


def best_ious(anchors: Tensor) -> Tensor:
    """IoU of each object in the held-out images with the best of ``anchors [A, 4]``."""
    return torch.cat([box_iou(target["boxes"], anchors).amax(1) for _, target in held_out()])


def answer_4a() -> None:
    """Objects that no anchor overlaps enough."""
    anchors = stages().anchors
    best = best_ious(anchors)
    print(f"Of {len(best)} objects {int((best < 0.7).sum())} have no anchor with an IoU of 0.7,")
    print(f"and {int((best < 0.3).sum())} none with 0.3; the lowest best IoU is {best.min():.2f}.")


def answer_4b() -> None:
    """Anchors of one ratio."""
    anchors = stages().anchors
    squares = anchors.reshape(-1, 3, 4)[:, 1]  # ratios 0.5, 1, 2 stand at each location
    assert torch.equal(squares[0], anchors_of_location((16,), (1.0,))[0])
    means = [best_ious(some).mean() for some in (anchors, squares)]
    print(f"The mean goes from {means[0]:.3f} to {means[1]:.3f}. These shapes are nearly square;")
    print("the boxes of standing people are not.")


def answer_5a() -> None:
    """Anchors with an objectness above 0.5."""
    above = int((stages().objectness[0].sigmoid() > 0.5).sum())
    print(f"{above} anchors for {len(shapes()[1]['labels'])} objects: neighbours say the same, and")
    print("NMS is there to choose.")


@torch.no_grad()
def answer_5b() -> None:
    """Objectness of a shifted image."""
    image, _ = shapes()
    before, after = stages(), trained().model.run_stages([image.roll((2, 2), (1, 2))])
    first = 0
    for n, level in enumerate(before.features.values()):
        count = level.shape[-2] * level.shape[-1] * 3
        old, new = (s.objectness[0, first : first + count].sigmoid().max() for s in (before, after))
        print(f"P{n + 2}: {old:.3f} -> {new:.3f}")
        first += count
    print("Convolutions with a stride are not invariant to such a shift. How much it matters")
    print("depends on where the object lies on the grid of the level that finds it.")


def answer_6a() -> None:
    """Standard deviations of the deltas."""
    deltas = []
    for target, s in targets_and_stages():
        boxes = s.proposals.to_list()[0]
        iou, match = box_iou(target["boxes"], boxes).max(0)
        near = iou >= 0.5
        deltas.append(UNWEIGHTED.encode(target["boxes"][match[near]], boxes[near]))
    std = torch.cat(deltas).std(0)
    weighted = std * torch.tensor([10.0, 10, 5, 5])
    print("standard deviations dx, dy, dw, dh:", [round(x, 3) for x in std.tolist()])
    print("times (10, 10, 5, 5):              ", [round(x, 2) for x in weighted.tolist()])


@torch.no_grad()
def answer_6b() -> None:
    """Deltas of an untrained head."""
    s = untrained().run_stages([shapes()[0]])
    deltas = s.pred_bbox_deltas[0]
    iou = box_iou(UNWEIGHTED.decode(deltas[:500], s.anchors[:500]), s.anchors)
    own = iou[torch.arange(500), torch.arange(500)]
    print(f"Deltas of about {deltas.abs().mean():.4f}, as the weights are drawn with a standard")
    print(f"deviation of 0.01: boxes equal their anchors up to an IoU of {own.mean():.3f}.")


def answer_7a() -> None:
    """A higher threshold of the RPN's NMS."""
    for threshold in (0.7, 0.9):
        changed = model()
        changed.rpn.nms_thresh = threshold
        useful = proposals = 0
        for target, s in targets_and_stages(changed):
            boxes = s.proposals.to_list()[0]
            useful += int((box_iou(target["boxes"], boxes).amax(0) >= 0.5).sum())
            proposals += len(boxes)
        print(f"{threshold}: {useful} of {proposals} proposals overlap an object; {ap(changed)}")
    print("More proposals per object, which the second NMS has to choose from.")


def answer_7b() -> None:
    """Rank of each object's first proposal."""
    s, (_, target) = stages(), shapes()
    iou = box_iou(target["boxes"], s.proposals.to_list()[0])
    ranks = [(row >= 0.5).nonzero()[:1].flatten().tolist() for row in iou]
    print("Rank of each object's first proposal with IoU >= 0.5, from 0:", ranks)
