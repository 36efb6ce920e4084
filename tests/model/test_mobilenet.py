"""``mobilenet_backbone`` is torchvision's: names, values, frozen layers, weights file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_scratch import AnchorGenerator, FasterRCNN, MultiScaleRoIAlign, mobilenet_backbone
from maskrcnn_scratch.backbone import FrozenBatchNorm2d
from maskrcnn_scratch.weights import WeightsError

NAME = "mobilenet_v3_large"


def reference(norm_layer: Callable[[int], nn.Module], **options: Any) -> nn.Module:
    utils = pytest.importorskip("torchvision.models.detection.backbone_utils")
    backbone: nn.Module = utils.mobilenet_backbone(
        backbone_name=NAME, weights=None, norm_layer=norm_layer, **options
    )
    return backbone


@pytest.mark.parametrize(
    "options",
    [
        {"fpn": True},
        {"fpn": True, "trainable_layers": 6, "returned_layers": [1, 2, 3, 4]},
        {"fpn": False, "trainable_layers": 0},
    ],
)
@torch.no_grad()
def test_equal_to_torchvisions(options: dict[str, Any]) -> None:
    """Also the random weights of one seed, and which parameters are trained."""
    torch.manual_seed(0)
    theirs = reference(nn.BatchNorm2d, **options)
    torch.manual_seed(0)
    ours = mobilenet_backbone(
        backbone_name=NAME, weights=None, norm_layer=nn.BatchNorm2d, **options
    )
    weights, expected = ours.state_dict(), theirs.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[key], value) for key, value in expected.items())
    assert [p.requires_grad for p in ours.parameters()] == [
        p.requires_grad for p in theirs.parameters()
    ]
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    found, wanted = ours.eval()(image), theirs.eval()(image)
    for key in wanted if options["fpn"] else [...]:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-5, atol=1e-5)
    assert not options["fpn"] or list(found) == list(wanted)
    assert ours.out_channels == theirs.out_channels == 256


def test_weights_of_the_classifier(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    classifier = models.mobilenet_v3_large()
    torch.save(classifier.state_dict(), tmp_path / "mobilenet.pth")
    backbone = mobilenet_backbone(backbone_name=NAME, weights=tmp_path / "mobilenet.pth", fpn=False)
    assert isinstance(backbone[0][0][1], FrozenBatchNorm2d)
    expected = classifier.features.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in backbone[0].state_dict().items())
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other.pth: not the weights of mobilenet_v3_large"):
        mobilenet_backbone(backbone_name=NAME, weights=tmp_path / "other.pth", fpn=False)


def test_in_a_detector() -> None:
    """As torchvision's tutorial of a custom backbone."""
    model = FasterRCNN(
        mobilenet_backbone(backbone_name=NAME, weights=None, fpn=True),
        num_classes=2,
        min_size=64,
        rpn_anchor_generator=AnchorGenerator(((16, 32, 64),) * 3, ((0.5, 1.0, 2.0),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
    )
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 64, 64)], [target])
    assert all(loss.isfinite() for loss in losses.values())
    assert set(model.eval()([torch.rand(3, 64, 64)])[0]) == {"boxes", "labels", "scores"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"backbone_name": "mobilenet_v2"}, "backbone_name is 'mobilenet_v2'"),
        ({"trainable_layers": 7}, "trainable_layers must be in 0-6, got 7"),
        ({"returned_layers": [6]}, r"returned_layers must be in 0-5, got \[6\]"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mobilenet_backbone(**{"backbone_name": NAME, "weights": None, "fpn": True, **options})
