"""Provenance of every detection, and the candidates of both NMS steps, against plain Python."""

from __future__ import annotations

import copy

import pytest
import torch

from maskrcnn_scratch.inspect import (
    NOT_AVAILABLE,
    box_selection,
    provenance,
    rpn_selection,
    suppressed_by,
)
from maskrcnn_scratch.inspect.levels import anchor_levels, anchor_place
from maskrcnn_scratch.inspect.suppression import NO_RANK, NOBODY
from maskrcnn_scratch.ops import batched_nms_padded
from tests.inspect import brute_force


def test_every_anchor_has_its_place(small_model, stages):
    levels = anchor_levels(small_model, stages)
    expected = [
        (index, row, column, shape)
        for index, feature in enumerate(stages.features.values())
        for row in range(feature.shape[2])
        for column in range(feature.shape[3])
        for shape in range(3)
    ]
    assert [anchor_place(levels, anchor) for anchor in range(len(stages.anchors))] == expected
    with pytest.raises(IndexError, match=f"there are {len(expected)}"):
        anchor_place(levels, len(expected))


@pytest.mark.parametrize("image", [0, 1])
def test_a_detection_is_decoded_again_from_its_provenance(small_model, stages, image):
    """Anchor -> proposal -> detection, with nothing but the indices that provenance gives."""
    size = stages.images.sizes[image].tolist()
    scores = stages.class_logits[image].softmax(1).flatten()
    count = int(stages.detections.counts[image])
    assert count > 20
    for detection in range(count):
        origin = provenance(small_model, stages, image, detection)
        deltas = stages.pred_bbox_deltas[image, origin.anchor].tolist()
        proposal = brute_force.decode(deltas, stages.anchors[origin.anchor].tolist(), size)
        assert origin.proposal_box == pytest.approx(proposal, abs=1e-3)
        logit = stages.objectness[image, origin.anchor]
        assert origin.objectness == float(logit.sigmoid())
        deltas = stages.box_regression[image, origin.proposal, origin.label].tolist()
        box = brute_force.decode(deltas, origin.proposal_box, size, (10, 10, 5, 5))
        assert origin.box == pytest.approx(box, abs=1e-3)
        assert origin.score == float(scores[origin.class_row])
        level = anchor_levels(small_model, stages)[origin.place.level]
        in_level = stages.objectness[image, level.first : level.first + level.size]
        order = in_level.argsort(descending=True, stable=True)
        assert int(order[origin.level_rank]) + level.first == origin.anchor
        pool = small_model.roi_heads.box_roi_pool
        area = (origin.proposal_box[2] - origin.proposal_box[0]) * (
            origin.proposal_box[3] - origin.proposal_box[1]
        )
        level = pool.canonical_level + torch.tensor(area).sqrt().div(pool.canonical_scale).log2()
        assert origin.box_level == min(max(int(level.floor()), 2), 5) - 2


def test_provenance_refuses_what_is_not_there(small_model, stages):
    with pytest.raises(IndexError, match="image 2: the batch has 2"):
        provenance(small_model, stages, 2, 0)
    count = int(stages.detections.counts[0])
    with pytest.raises(IndexError, match=f"detection {count}: image 0 has {count}"):
        provenance(small_model, stages, 0, count)


@pytest.mark.parametrize("image", [0, 1])
def test_candidates_of_the_rpn(small_model, stages, image):
    selection = rpn_selection(small_model, stages, image)
    levels = anchor_levels(small_model, stages)
    logits = stages.objectness[image].tolist()
    assert selection.parents.tolist() == brute_force.top_k(logits, levels, 1000)
    size = stages.images.sizes[image].tolist()
    for box, anchor in zip(selection.boxes.tolist(), selection.parents.tolist(), strict=True):
        deltas = stages.pred_bbox_deltas[image, anchor].tolist()
        decoded = brute_force.decode(deltas, stages.anchors[anchor].tolist(), size)
        assert box == pytest.approx(decoded, abs=1e-3)
    count = int(stages.proposals.counts[image])
    kept = selection.parents[selection.kept]
    assert torch.equal(kept, stages.proposals.anchor_indices[image, :count])


@pytest.mark.parametrize("image", [0, 1])
def test_candidates_of_the_box_head(small_model, stages, image):
    selection = box_selection(small_model, stages, image)
    scores = stages.class_logits[image].softmax(1).tolist()
    expected = [
        (proposal, label)
        for proposal in range(int(stages.proposals.counts[image]))
        for label in range(1, len(scores[0]))
        if scores[proposal][label] > small_model.roi_heads.score_thresh
    ]
    found = zip(selection.parents.tolist(), selection.groups.tolist(), strict=True)
    assert list(found) == expected


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("select", [rpn_selection, box_selection])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7])
def test_suppressors(small_model, stages, image, select, threshold):
    """Against plain Python on the same candidates, at several thresholds."""
    selection = select(small_model, stages, image)
    indices, counts = selection.nms(
        selection.boxes[None], selection.scores[None], selection.groups[None], threshold,
        selection.max_out, selection.num_groups,
    )  # fmt: skip
    selection = copy.copy(selection)
    object.__setattr__(selection, "iou_threshold", threshold)
    object.__setattr__(selection, "kept", indices[0, : int(counts[0])])
    found = suppressed_by(selection)
    survivors, suppressors = brute_force.nms(
        selection.boxes.double().tolist(),
        selection.scores.tolist(),
        selection.groups.tolist(),
        threshold,
    )
    assert survivors[: selection.max_out] == selection.kept.tolist()
    assert suppressors  # the test is about something
    for candidate in range(len(selection.boxes)):
        if candidate in suppressors:
            suppressor, overlap = suppressors[candidate]
            assert found.suppressor[candidate] == suppressor
            assert float(found.iou[candidate]) == pytest.approx(overlap, abs=1e-4)
            assert found.rank[candidate] == NO_RANK
            continue
        assert found.suppressor[candidate] == NOBODY
        if candidate in survivors:
            assert found.rank[candidate] == survivors.index(candidate)
        else:  # filtered out before NMS
            assert selection.scores[candidate] == -torch.inf
            assert found.rank[candidate] == NO_RANK


def test_ties_are_broken_by_the_lower_index(small_model, stages):
    """Equal scores: the box that came first suppresses, never the other way round."""
    selection = copy.copy(rpn_selection(small_model, stages, 0))
    object.__setattr__(selection, "scores", torch.full_like(selection.scores, 0.5))
    found = suppressed_by(selection)
    dropped = found.suppressor != NOBODY
    assert dropped.any()
    assert (found.suppressor[dropped] < dropped.nonzero().squeeze(1)).all()


def test_another_nms_does_not_say_who_suppressed_whom(small_model, images):
    def class_agnostic(boxes, scores, groups, *rest):
        return batched_nms_padded(boxes, scores, torch.zeros_like(groups), *rest)

    model = copy.deepcopy(small_model)
    model.roi_heads.nms = class_agnostic
    with torch.no_grad():
        stages = model.run_stages(images)
    selection = box_selection(model, stages, 0)
    assert len(selection.kept) == int(stages.detections.counts[0])  # kept or not is known
    assert suppressed_by(selection) is None


def test_swapped_components_say_what_they_cannot_tell(small_model, images):
    class Pooler(torch.nn.Module):
        output_size = (7, 7)

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args):
            return self.inner(*args)

    class RPN(type(small_model.rpn)):
        def forward(self, *args):
            return super().forward(*args)

    model = copy.deepcopy(small_model)
    model.roi_heads.box_roi_pool = Pooler(model.roi_heads.box_roi_pool)
    model.rpn.__class__ = RPN
    with torch.no_grad():
        stages = model.run_stages(images)
    origin = provenance(model, stages, 0, 0)
    assert origin.box_level is origin.place is origin.level_rank is None
    assert origin.mask_level is not None  # the mask branch has its own pooler
    assert origin.anchor == int(stages.proposals.anchor_indices[0, origin.proposal])
    assert str(origin).count(NOT_AVAILABLE) == 3
    assert rpn_selection(model, stages, 0) is None


def test_a_selection_of_its_own_is_noticed(small_model, stages):
    """Stages that another selection made: the answer is None, not the candidates of ours."""
    changed = copy.deepcopy(stages)
    changed.proposals.counts -= 1
    changed.detections.boxes += 1
    assert rpn_selection(small_model, changed, 0) is None
    assert box_selection(small_model, changed, 0) is None


def test_inspecting_changes_nothing(small_model, images, stages):
    before = {name: value.clone() for name, value in small_model.state_dict().items()}
    provenance(small_model, stages, 0, 0)
    suppressed_by(rpn_selection(small_model, stages, 0))
    with torch.no_grad():
        again = small_model.run_stages(images)
    assert all(torch.equal(before[n], v) for n, v in small_model.state_dict().items())
    assert torch.equal(again.detections.boxes, stages.detections.boxes)
