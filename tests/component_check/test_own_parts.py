"""Our own parts pass every check."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection import _utils as torchvision_utils

from maskrcnn_scratch import losses
from maskrcnn_scratch.component_check.host import (
    SmallBackbone,
    default_anchor_generator,
    default_pool,
    model_around,
)
from maskrcnn_scratch.component_check.run import PLANS, check_part
from maskrcnn_scratch.component_check.subject import Setting
from maskrcnn_scratch.ops import batched_nms_padded, nms_padded
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    TwoMLPHead,
)
from maskrcnn_scratch.rpn import AnchorGenerator, RPNHead
from maskrcnn_scratch.structures import boxes_to_rois, list_to_rois
from maskrcnn_scratch.targets.matcher import Matcher
from maskrcnn_scratch.targets.sampler import BalancedPositiveNegativeSampler, DeviceSampler

SETTING = Setting(side=64)


class Centers(torch.nn.Module):
    """A branch: the centre of each box, moved by a layer of its pooled features."""

    def __init__(self):
        super().__init__()
        self.pool = default_pool(("0", "1"), 2)
        self.layer = torch.nn.Linear(64 * 2 * 2, 2)

    def predict(self, features, rois, padded_size):
        moved = self.layer(self.pool(features, rois, [padded_size]).flatten(1))
        return (rois[:, 1:3] + rois[:, 3:5]) / 2 + moved

    def losses(self, features, samples, targets, padded_size):
        boxes = [proposals[objects] for proposals, objects in
                 zip(samples.proposals, samples.objects, strict=True)]  # fmt: skip
        return {"loss_centers": self.predict(features, list_to_rois(boxes), padded_size).sum() / 99}

    def detect(self, features, detections, padded_size):
        centers = self.predict(features, boxes_to_rois(detections.boxes), padded_size)
        return {"centers": centers.unflatten(0, detections.scores.shape)}


class LevelMatcher(Matcher):
    """Asks for the anchors per level."""

    def __call__(self, gt_boxes, boxes, level_sizes):
        assert sum(level_sizes) == len(boxes)
        return super().__call__(gt_boxes, boxes)


class HardestFirst(BalancedPositiveNegativeSampler):
    """Asks for what the model gives it: the losses."""

    def __call__(self, labels, generator=None, *, losses, scores):
        assert all(len(loss) == len(label) for loss, label in zip(losses, labels, strict=True))
        assert len(scores) == len(labels)
        return super().__call__(labels, generator)


class AgnosticPredictor(torch.nn.Module):
    """The deltas of a class are those of all."""

    def __init__(self):
        super().__init__()
        self.cls_score = torch.nn.Linear(64, 4)
        self.bbox_pred = torch.nn.Linear(64, 4)

    def forward(self, x):
        return self.cls_score(x), self.bbox_pred(x)


OWN_PARTS = {
    "backbone": [lambda: SmallBackbone(32)],
    "anchor_generator": [
        lambda: default_anchor_generator(SETTING, 5),
        lambda: AnchorGenerator(((16, 32), (64,)), ((1.0,), (0.5, 2.0)), strides=(4, 8)),
    ],
    "rpn_head": [lambda: RPNHead(64, 3), lambda: RPNHead(64, 2, conv_depth=2)],
    "nms": [lambda: batched_nms_padded, lambda: nms_padded],
    "roi_align": [
        lambda: default_pool(("0", "1", "2", "3"), 7),
        lambda: default_pool(("1",), 14),
    ],
    "matcher": [
        lambda: Matcher(0.7, 0.3, True),
        lambda: Matcher(0.5, 0.5),
        lambda: LevelMatcher(0.5, 0.5),
    ],
    "sampler": [
        lambda: BalancedPositiveNegativeSampler(64, 0.5),
        lambda: DeviceSampler(64, 0.25),
        lambda: HardestFirst(64, 0.25),
        lambda: torchvision_utils.BalancedPositiveNegativeSampler(64, 0.5),
    ],
    "box_coder": [lambda: BoxCoder((10.0, 10.0, 5.0, 5.0))],
    "loss": [
        lambda: losses.loss_objectness,
        lambda: losses.loss_rpn_box_reg,
        lambda: losses.loss_classifier,
        lambda: losses.loss_box_reg,
        lambda: losses.loss_mask,
    ],
    "box_head": [
        lambda: TwoMLPHead(64 * 7 * 7, 32),
        lambda: FastRCNNConvFCHead((64, 7, 7), (16,), (32,)),
    ],
    "box_predictor": [lambda: FastRCNNPredictor(64, 4), AgnosticPredictor],
    "mask_head": [lambda: MaskRCNNHeads(64, (32, 16), dilation=1)],
    "mask_predictor": [lambda: MaskRCNNPredictor(64, 32, 4), lambda: MaskRCNNPredictor(64, 32, 1)],
    "branch": [lambda: Centers()],
    "model": [lambda: model_around(SETTING)],
}
CASES = [(kind, n) for kind, parts in OWN_PARTS.items() for n in range(len(parts))]


def test_every_kind_has_a_part_here():
    assert OWN_PARTS.keys() == PLANS.keys()


@pytest.mark.parametrize("kind, n", CASES)
def test_own_part_passes(kind, n):
    results = list(check_part(OWN_PARTS[kind][n], kind, SETTING, quick=True))
    assert [result for result in results if result.status in ("FAIL", "no")] == []
    names = [result.name for result in results]
    assert len(set(names)) == len(names) >= 18
    # What makes no sense for a part is stated, not counted as passed.
    skipped = {result.name for result in results if result.status == "not applicable"}
    assert skipped <= {"training", "state_dict", "channels-last"}


@pytest.mark.slow
def test_loss_falls_and_capabilities_are_tried():
    results = list(check_part(OWN_PARTS["box_head"][0], "box_head", SETTING, train=True))
    found = {result.name: result for result in results}
    assert found["training"].status == "ok" and "mean loss" in found["training"].detail
    tried = {name.removeprefix("capability: "): found[name].status
             for name in found if name.startswith("capability: ")}  # fmt: skip
    assert tried.keys() == {"eager", "bf16", "DDP", "compile", "pt2", "onnx", "graph"}
    assert {tried[name] for name in ("eager", "bf16", "DDP", "compile", "pt2")} == {"yes"}
    assert tried["onnx"] in ("yes", "not tried")  # not tried where onnx is not installed
