"""The builders against torchvision's: same keys both ways, same detections."""

from __future__ import annotations

from typing import Any

import pytest
import skimage.data
import torch
from torch import Tensor, nn

import maskrcnn_scratch
from maskrcnn_scratch import FasterRCNN
from maskrcnn_scratch.parity.calibrate import calibrate
from maskrcnn_scratch.weights import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    WeightsEnum,
)
from maskrcnn_scratch.weights.identify import BUILDERS
from tests.weights.same_detections import assert_same_detections

detection = pytest.importorskip("torchvision.models.detection")
PUBLISHED = (
    MaskRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    FasterRCNN_ResNet50_FPN_V2_Weights,
)
SMALL: dict[str, Any] = {
    "min_size": 128,
    "max_size": 192,
    "rpn_post_nms_top_n_test": 50,
    "box_detections_per_img": 15,
}


def photograph() -> Tensor:
    return torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1) / 255


def build(name: str, **kwargs: Any) -> FasterRCNN:
    torch.manual_seed(0)
    model = getattr(maskrcnn_scratch, name)(weights_backbone=None, **SMALL, **kwargs).eval()
    calibrate(model, photograph(), background_logit=5.0)
    return model


@pytest.fixture(scope="module", params=BUILDERS)
def pair(request: pytest.FixtureRequest) -> tuple[FasterRCNN, nn.Module]:
    """Our model and torchvision's with the same weights."""
    ours = build(request.param)
    theirs = getattr(detection, request.param)(weights_backbone=None, **SMALL).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def test_keys_both_ways(pair: tuple[FasterRCNN, nn.Module]) -> None:
    ours, theirs = pair
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert [name for name, p in ours.named_parameters() if p.requires_grad] == [
        name for name, p in theirs.named_parameters() if p.requires_grad
    ]


@torch.no_grad()
def test_same_detections(pair: tuple[FasterRCNN, nn.Module]) -> None:
    ours, theirs = pair
    images = [photograph(), photograph()[:, 100:300, :400].flip(2)]
    assert_same_detections(ours(images), theirs(images))


@pytest.mark.parametrize("name, published", [*zip(BUILDERS, PUBLISHED, strict=True)])
def test_number_of_parameters(name: str, published: type[WeightsEnum]) -> None:
    with torch.device("meta"):
        model = getattr(maskrcnn_scratch, name)(weights_backbone=None)
    norms = [m for m in model.backbone.body.modules() if isinstance(m, nn.BatchNorm2d)]
    not_learned = 0 if name.endswith("_v2") else sum(2 * norm.num_features for norm in norms)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters - not_learned == published.DEFAULT.meta["num_params"]
