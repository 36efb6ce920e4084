"""Two settings of one model: what is lost, gained and changed, and the first stage that differs."""

from __future__ import annotations

import copy

import pytest
import torch

from maskrcnn_scratch.inspect.comparison import Side, compare
from maskrcnn_scratch.inspect.settings import with_settings
from maskrcnn_scratch.inspect.steps import STEPS


@pytest.fixture(scope="module")
def image(images):
    return images[0]


@pytest.fixture(scope="module")
def side(image):
    def run(name, model):
        with torch.no_grad():
            return Side(name, model, model.run_stages([image]))

    return run


def steps(changes):
    return {change.step for change in changes if change.kind != "same"}


def test_every_detection_is_counted_once(small_model, side):
    a = side("A", small_model)
    b = side("B", with_settings(small_model, ("roi_heads.nms_thresh=0.2",)))
    changes = compare(a, b)
    assert sorted(c.a for c in changes if c.a is not None) == list(range(a.count))
    assert sorted(c.b for c in changes if c.b is not None) == list(range(b.count))
    labels = a.stages.detections.labels[0], b.stages.detections.labels[0]
    for change in changes:
        assert (change.kind == "lost") == (change.b is None)
        assert (change.kind == "gained") == (change.a is None)
        if change.a is not None and change.b is not None:
            assert labels[0][change.a] == labels[1][change.b]
            assert change.iou >= 0.5
    assert {change.kind for change in changes} >= {"lost", "same"}
    backwards = compare(b, a)
    assert sum(c.kind == "gained" for c in backwards) >= 1


@pytest.mark.parametrize(
    "setting, step, text",
    [
        ("transform.min_size=(64,)", "transform", "The resized, normalised image differs"),
        ("rpn.nms_thresh=0.2", "proposals", "is suppressed in B by candidate"),
        ("rpn.post_nms_top_n.testing=5", "proposals", "is beyond the cap of 5 in B"),
        ("rpn.pre_nms_top_n.testing=2", "proposals", "is no candidate of NMS in B"),
        ("roi_heads.score_thresh=0.3", "class_nms", "below the score threshold"),
        ("roi_heads.nms_thresh=0.1", "class_nms", "is suppressed in B by candidate"),
        ("roi_heads.detections_per_img=4", "class_nms", "is beyond the cap of 4 in B"),
    ],
)
def test_the_first_stage_that_differs(small_model, side, setting, step, text):
    changes = compare(side("A", small_model), side("B", with_settings(small_model, (setting,))))
    lost = [change for change in changes if change.kind == "lost"]
    assert lost
    assert step in steps(changes)
    assert any(text in change.text for change in lost)
    if step in ("transform", "class_nms"):  # nothing before it differs
        assert steps(changes) <= {step, "mask_head"}


@pytest.mark.parametrize(
    "path, step",
    [
        ("backbone.body.conv1", "features"),
        ("rpn.head.cls_logits", "objectness"),
        ("rpn.head.bbox_pred", "objectness"),
        ("roi_heads.box_predictor.cls_score", "box_head"),
        ("roi_heads.box_predictor.bbox_pred", "box_head"),
        ("roi_heads.mask_predictor.mask_fcn_logits", "mask_head"),
    ],
)
def test_other_weights_of_one_layer(small_model, side, path, step):
    other = copy.deepcopy(small_model)
    with torch.no_grad():
        weight = other.get_submodule(path).weight
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    found = steps(compare(side("A", small_model), side("B", other)))
    assert step in found
    # A box whose own values are the same may still be suppressed by another one, later.
    order = [one.id for one in STEPS]
    assert all(order.index(later) >= order.index(step) for later in found)


def test_other_anchors(small_model, side):
    other = copy.deepcopy(small_model)
    generator = other.rpn.anchor_generator
    generator.cell_anchors = [anchors * 1.5 for anchors in generator.cell_anchors]
    generator._cache.clear()
    assert steps(compare(side("A", small_model), side("B", other))) == {"anchors"}


def test_the_same_model_twice(small_model, side):
    changes = compare(side("A", small_model), side("B", copy.deepcopy(small_model)))
    assert changes
    assert {change.kind for change in changes} == {"same"}
