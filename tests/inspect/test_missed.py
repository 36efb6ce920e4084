"""Where objects are lost: random objects against plain Python, and one made for each fate."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from maskrcnn_scratch.inspect import (
    Fate,
    box_selection,
    explain_missed,
    explain_objects,
    rpn_selection,
    suppressed_by,
)
from maskrcnn_scratch.inspect.collect_boxes import collect_box_head
from maskrcnn_scratch.inspect.levels import anchor_levels
from maskrcnn_scratch.inspect.selection import refined_boxes
from maskrcnn_scratch.structures import Proposals
from tests.inspect import brute_force


def targets_of(images, boxes, labels):
    """The same objects in every image, without masks."""
    return [{"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)} for _ in images]


def random_targets(images, count, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for image in images:
        size = torch.tensor([image.shape[2], image.shape[1]])
        centre = torch.rand(count, 2, generator=generator) * size
        half = torch.rand(count, 2, generator=generator) * size / 3 + 2
        boxes = torch.cat((centre - half, centre + half), 1)
        boxes = torch.minimum(boxes.clamp(min=0), size.repeat(2) - 0.5)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 2)
        labels = torch.randint(1, 5, (count,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels})
    return targets


def brute_force_fates(model, stages, image, boxes, labels):
    """The fate of each object, by the definition in ``missed``, one box at a time."""
    size = stages.images.sizes[image].tolist()
    levels = anchor_levels(model, stages)
    logits = stages.objectness[image].tolist()
    anchors, deltas = stages.anchors.tolist(), stages.pred_bbox_deltas[image].tolist()
    decoded = [brute_force.decode(d, a, size) for d, a in zip(deltas, anchors, strict=True)]
    k = model.rpn.pre_nms_top_n["testing"]
    candidates = brute_force.top_k(logits, levels, k)
    count = int(stages.proposals.counts[image])
    proposals = stages.proposals.boxes[image, :count].tolist()
    regression = stages.box_regression[image].tolist()
    scores = stages.class_logits[image, :count].softmax(1).tolist()
    weights = model.roi_heads.box_coder.weights
    detections = stages.detections.boxes[image, : int(stages.detections.counts[image])].tolist()
    of_label = stages.detections.labels[image].tolist()

    taken = {}
    for d, box in enumerate(detections):
        free = [g for g, label in enumerate(labels) if label == of_label[d] and g not in taken]
        best = max(free, key=lambda g: brute_force.iou(box, boxes[g]), default=None)
        if best is not None and brute_force.iou(box, boxes[best]) >= 0.5:
            taken[best] = d

    fates = []
    for g, (gt, label) in enumerate(zip(boxes, labels, strict=True)):
        if g in taken:
            fates.append(Fate.FOUND)
            continue
        refined = [
            brute_force.decode(regression[p][label], proposals[p], size, weights)
            for p in range(count)
        ]
        rows = [p for p in range(count) if brute_force.iou(refined[p], gt) >= 0.5]
        if rows:
            enough = [p for p in rows if scores[p][label] > model.roi_heads.score_thresh]
            if any(
                brute_force.iou(box, gt) >= 0.5 and of_label[d] == label
                for d, box in enumerate(detections)
            ):
                fates.append(Fate.TAKEN)
            elif enough:
                everything = [
                    (p, c)
                    for p in range(count)
                    for c in range(1, len(scores[0]))
                    if scores[p][c] > model.roi_heads.score_thresh
                ]
                survivors, _ = brute_force.nms(
                    [
                        brute_force.decode(regression[p][c], proposals[p], size, weights)
                        for p, c in everything
                    ],
                    [scores[p][c] for p, c in everything],
                    [c for _, c in everything],
                    model.roi_heads.nms_thresh,
                )
                survived = {everything[i] for i in survivors}
                beyond = any((p, label) in survived for p in enough)
                fates.append(Fate.BEYOND_DETECTIONS if beyond else Fate.CLASS_NMS)
            else:
                best = max(rows, key=lambda p: scores[p][label])
                winner = max(range(len(scores[best])), key=lambda c: scores[best][c])
                fates.append(
                    Fate.UNDER_THRESHOLD
                    if winner == label
                    else Fate.OTHER_CLASS
                    if winner
                    else Fate.BACKGROUND
                )
        elif any(brute_force.iou(box, gt) >= 0.5 for box in proposals):
            fates.append(Fate.REFINED_AWAY)
        elif any(brute_force.iou(decoded[a], gt) >= 0.5 for a in candidates):
            level_of = [i for i, level in enumerate(levels) for _ in range(level.size)]
            survivors, _ = brute_force.nms(
                [decoded[a] for a in candidates],
                [stages.objectness[image, a].sigmoid().item() for a in candidates],
                [level_of[a] for a in candidates],
                model.rpn.nms_thresh,
            )
            alive = {candidates[i] for i in survivors}
            beyond = any(a in alive and brute_force.iou(decoded[a], gt) >= 0.5 for a in candidates)
            fates.append(Fate.BEYOND_PROPOSALS if beyond else Fate.RPN_NMS)
        elif any(brute_force.iou(box, gt) >= 0.5 for box in decoded):
            fates.append(Fate.NOT_IN_TOP_K)
        elif max(brute_force.iou(a, gt) for a in anchors) < 0.3:
            fates.append(Fate.NO_ANCHOR)
        else:
            fates.append(Fate.NOT_REACHED)
    return fates


@pytest.mark.parametrize("seed", range(3))
def test_random_objects_against_plain_python(small_model, images, seed):
    """Settings under which few boxes pass, so that objects are lost in every stage."""
    model = copy.deepcopy(small_model)
    model.rpn.pre_nms_top_n = {"training": 60, "testing": 60}
    model.rpn.post_nms_top_n = {"training": 40, "testing": 40}
    model.rpn.nms_thresh = 0.5
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.22, 15
    with torch.no_grad():
        stages = model.run_stages(images)
    targets = random_targets(images, 40, seed)
    sizes = [tuple(image.shape[1:]) for image in images]
    found = explain_objects(model, stages, targets, sizes)
    for image, target in enumerate(targets):
        scale = stages.images.sizes[image].flip(0) / torch.tensor(images[image].shape[1:]).flip(0)
        boxes = (target["boxes"] * scale.repeat(2)).tolist()
        expected = brute_force_fates(model, stages, image, boxes, target["labels"].tolist())
        assert [fate.fate for fate in found[image]] == expected
    assert len({fate.fate for of_image in found for fate in of_image}) >= 4
    missed = explain_missed(model, stages, targets, sizes)
    for of_image, all_of_image in zip(missed, found, strict=True):
        expected = [fate.object for fate in all_of_image if fate.fate is not Fate.FOUND]
        assert [fate.object for fate in of_image] == expected


def test_evidence_of_a_suppressed_object(small_model, images):
    """Objects laid on boxes that the RPN's NMS dropped: the suppressor is the one it names."""
    model = copy.deepcopy(small_model)
    model.rpn.nms_thresh = 0.05
    with torch.no_grad():
        stages = model.run_stages(images[:1])
    selection = rpn_selection(model, stages, 0)
    suppression = suppressed_by(selection)
    dropped = (suppression.suppressor >= 0).nonzero().squeeze(1)[:40]
    boxes = selection.boxes[dropped]
    ratio = torch.tensor(images[0].shape[1:]).flip(0) / stages.images.sizes[0].flip(0)
    targets = [{"boxes": boxes * ratio.repeat(2), "labels": torch.ones(len(boxes), dtype=int)}]
    fates = explain_objects(model, stages, targets, [tuple(images[0].shape[1:])])[0]
    suppressed = [fate for fate in fates if fate.fate is Fate.RPN_NMS]
    assert suppressed
    for fate in suppressed:
        assert fate.suppressor == int(suppression.suppressor[fate.candidate])
        assert fate.suppressor_iou == float(suppression.iou[fate.candidate])
        assert fate.suppressor_iou > 0.05


def test_masks_decide_about_poor_ones(small_model, images, stages):
    """The detections' own boxes as objects: found; with empty masks: found with a poor mask."""
    result = stages.results[0]
    chosen = [0, 1, 2]
    masks = (result["masks"][chosen, 0] >= 0.5).to(torch.uint8)
    target = {
        "boxes": result["boxes"][chosen],
        "labels": result["labels"][chosen],
        "masks": masks,
    }
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    sizes = [tuple(image.shape[1:]) for image in images]
    fates = explain_objects(small_model, stages, [target, empty], sizes)
    assert fates[1] == []
    assert all(fate.mask_iou == 1.0 for fate in fates[0] if fate.detection in chosen)
    target["masks"] = torch.zeros_like(masks)
    fates = explain_objects(small_model, stages, [target, empty], sizes)
    assert {fate.fate for fate in fates[0]} == {Fate.POOR_MASK}
    assert all(fate.mask_iou == 0 and fate.box_iou >= 0.5 for fate in fates[0])


def test_two_objects_and_one_detection(small_model, images, stages):
    """Both objects lie where one detection is: it counts for one of them alone."""
    model = copy.deepcopy(small_model)
    model.roi_heads.detections_per_img = 1
    with torch.no_grad():
        one = model.run_stages(images[:1])
    result = one.results[0]
    boxes = result["boxes"].repeat(2, 1)
    target = {"boxes": boxes, "labels": result["labels"].repeat(2)}
    fates = explain_objects(model, one, [target], [tuple(images[0].shape[1:])])[0]
    assert [fate.fate for fate in fates] == [Fate.FOUND, Fate.TAKEN]
    assert fates[1].detection == 0


def test_a_swapped_rpn_is_not_guessed_about(small_model, images):
    class RPN(type(small_model.rpn)):
        def propose(self, *args, **kwargs):
            found = super().propose(*args, **kwargs)
            counts = found.counts // 2
            return Proposals(found.boxes, found.scores, counts, found.anchor_indices)

    model = copy.deepcopy(small_model)
    model.rpn.__class__ = RPN
    with torch.no_grad():
        stages = model.run_stages(images)
    assert rpn_selection(model, stages, 0) is None
    assert box_selection(model, stages, 0) is not None
    targets = targets_of(images, [[0.0, 0.0, 1.0, 1.0]], [1])
    fates = explain_missed(model, stages, targets, [tuple(image.shape[1:]) for image in images])
    assert [fate.fate for fate in fates[0]] == [Fate.NOT_AVAILABLE]


def test_moved_proposals_are_not_guessed_about(small_model, images):
    """With ``refine`` the deltas of the box head belong to boxes that are not stored."""

    class Shift(torch.nn.Module):
        def forward(self, features, proposals, padded_size):
            return replace(proposals, boxes=proposals.boxes + 1)

        def losses(self, features, proposals, padded_size, targets, generator):
            return {}, self(features, proposals, padded_size)

    model = copy.deepcopy(small_model)
    model.roi_heads.refine = Shift()
    model.roi_heads.score_thresh = 1.0  # no detections: there is nothing to compare with
    with torch.no_grad():
        stages = model.run_stages(images)
    one = torch.ones(1, dtype=torch.int64)
    assert refined_boxes(model, stages, 0, one, one) is None
    assert refined_boxes(small_model, stages, 0, one, one) is not None
    assert box_selection(model, stages, 0) is None
    assert collect_box_head(model, stages)["refined"] is None
    targets = targets_of(images, [[0.0, 0.0, 40.0, 40.0]], [1])
    fates = explain_missed(model, stages, targets, [tuple(image.shape[1:]) for image in images])
    assert [fate.fate for fate in fates[0]] == [Fate.NOT_AVAILABLE]


def test_bad_targets_are_named(small_model, images, stages):
    targets = targets_of(images, [[0.0, 0.0, 9.0, 9.0]], [1])
    with pytest.raises(ValueError, match="target 0 has no masks: give original_image_sizes"):
        explain_objects(small_model, stages, targets)
    with pytest.raises(ValueError, match="got 1 targets for 2 images"):
        explain_objects(small_model, stages, targets[:1])
