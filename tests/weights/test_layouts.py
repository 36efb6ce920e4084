"""Layouts of other libraries against these libraries (test_detectron2.py has detectron2's)."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import FasterRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from maskrcnn_scratch.backbone import IntermediateLayerGetter, resnet
from maskrcnn_scratch.weights import WeightsError
from maskrcnn_scratch.weights.identify import BACKBONE, convert, nearest_model, to_torchvision
from maskrcnn_scratch.weights.layouts import LAYOUTS, detect_layout
from maskrcnn_scratch.weights.loading import load_backbone

torchvision = pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    torch.manual_seed(0)
    return maskrcnn_resnet50_fpn(weights_backbone=None, num_classes=3)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def old_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys of files from before torchvision 0.13, which its modules still accept."""
    renamed = {}
    for key, tensor in state_dict.items():
        key = re.sub(r"(fpn\.\w+_blocks\.\d)\.0", r"\1", key)
        key = key.replace("rpn.head.conv.0.0", "rpn.head.conv")
        key = re.sub(r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}", key)
        renamed[key] = tensor
    return renamed


def test_old_torchvision(model: FasterRCNN) -> None:
    state_dict = dict(model.state_dict())
    old = convert(state_dict, "torchvision", "torchvision-old")
    assert_equal(old, old_names(state_dict))
    assert detect_layout(old) == "torchvision-old"
    assert_equal(convert(old, None, "torchvision"), state_dict)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights_backbone=None, num_classes=3
    )
    theirs.load_state_dict(dict(old))  # its modules accept the old names
    assert_equal(dict(theirs.state_dict()), state_dict)
    model.load_state_dict(dict(old))  # and so do ours
    v2 = maskrcnn_resnet50_fpn_v2(weights_backbone=None).state_dict()
    with pytest.raises(WeightsError, match="no _v2 models"):
        convert(v2, "torchvision", "torchvision-old")


@pytest.mark.parametrize("library", ["resnet50", "timm"])
def test_imagenet_resnet50(library: str) -> None:
    torch.manual_seed(0)
    theirs: nn.Module
    if library == "timm":
        theirs = pytest.importorskip("timm").create_model("resnet50").eval()
    else:
        theirs = torchvision.models.resnet50().eval()
    state_dict = dict(theirs.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        x = theirs.maxpool(theirs.bn1(theirs.conv1(images)).relu())
        stages = {}
        for i in range(1, 5):
            stages[f"layer{i}"] = x = getattr(theirs, f"layer{i}")(x)

        body = resnet("resnet50").eval()
        load_backbone(body, state_dict)
        found = IntermediateLayerGetter(body, {name: name for name in stages})(images)
    for name, stage in stages.items():
        torch.testing.assert_close(found[name], stage, rtol=1e-5, atol=1e-5)

    ours = convert(state_dict, library, "torchvision")
    assert to_torchvision(state_dict) == (ours, BACKBONE)
    without_classifier = {k: t for k, t in state_dict.items() if not k.startswith("fc.")}
    assert_equal(convert(ours, None, library), without_classifier)


def test_backbone_of_a_detector(model: FasterRCNN) -> None:
    body = convert(model.state_dict(), None, "resnet50")
    assert_equal(body, dict(model.backbone.body.state_dict()))
    theirs = torchvision.models.resnet50()
    assert set(theirs.load_state_dict(body, strict=False).missing_keys) == {"fc.weight", "fc.bias"}


def test_detectron2_has_no_v2() -> None:
    v2 = maskrcnn_resnet50_fpn_v2(weights_backbone=None).state_dict()
    with pytest.raises(WeightsError, match=r"\d+ keys are not in that layout: backbone\.fpn"):
        convert(v2, "torchvision", "detectron2")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_incomplete_and_foreign_keys(model: FasterRCNN, layout: str) -> None:
    state_dict = convert(model.state_dict(), None, layout)
    some_key = next(key for key in state_dict if "conv3" in key)
    broken = {("extra.weight" if k == some_key else k): t for k, t in state_dict.items()}
    with pytest.raises(WeightsError, match=r"extra\.weight"):
        convert(broken, layout, "torchvision")
    del broken["extra.weight"]
    with pytest.raises(WeightsError, match=r"1 missing: missing .*conv3"):
        convert(broken, layout, "torchvision")
    with pytest.raises(WeightsError, match=r"no known layout: a, b, c, \.\.\."):
        convert(dict.fromkeys("abcd", torch.zeros(1)), None, layout)


def test_nearest_model(model: FasterRCNN) -> None:
    match = nearest_model([*model.state_dict(), "roi_heads.extra.weight"])
    assert str(match) == (
        "nearest is maskrcnn_resnet50_fpn, with 1 unexpected: unexpected roi_heads.extra.weight"
    )
    boxes_only = [key for key in model.state_dict() if ".mask_" not in key]
    assert str(nearest_model(boxes_only)) == "the keys of fasterrcnn_resnet50_fpn"
