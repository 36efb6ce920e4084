"""An int8 model detects what the model detects; what it needs is said in one line."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.data.shapes import ShapesDataset
from maskrcnn_scratch.inference import optimize
from maskrcnn_scratch.inference.int8 import QuantizedNetwork
from maskrcnn_scratch.inference.verify_optimized import relative_error

IMAGES = [ShapesDataset(2, seed=0)[index][0] for index in range(2)]
# Relative error of features and head outputs of random weights; measured 0.005 to 0.04.
TOLERANCE = 0.1


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    torch.manual_seed(0)
    return small_maskrcnn(4, min_size=128, max_size=160, box_score_thresh=0.0).eval()


def test_the_package_that_is_missing_is_named(
    model: MaskRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)
    with pytest.raises(ImportError, match=r"pip install 'maskrcnn_scratch\[int8\]'"):
        optimize(model, dtype="int8", calibration=IMAGES)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dtype": "int8"}, "needs calibration images"),
        ({"dtype": "int8", "calibration": IMAGES, "winograd": True}, "no winograd, compile"),
        ({"dtype": "int8", "calibration": IMAGES, "compile": True}, "no winograd, compile"),
        ({"dtype": "int4", "calibration": IMAGES}, "dtype is 'int4'"),
        ({"calibration": IMAGES}, "calibration images need dtype='int8'"),
    ],
)
def test_arguments_that_do_not_go_together(
    model: MaskRCNN, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        optimize(model, **arguments)


def test_only_float32_is_quantised(model: MaskRCNN) -> None:
    with pytest.raises(ValueError, match=r"float32 model on the CPU, got torch.float64 on cpu"):
        optimize(copy.deepcopy(model).double(), dtype="int8", calibration=IMAGES)


def test_calibration_without_detections_is_refused(model: MaskRCNN) -> None:
    pytest.importorskip("torchao")
    blind = copy.deepcopy(model)
    blind.roi_heads.score_thresh = 2.0
    with pytest.raises(ValueError, match="mask_head got no input from the 2 calibration images"):
        optimize(blind, dtype="int8", calibration=IMAGES)


@pytest.fixture(scope="module")
def quantized(model: MaskRCNN) -> MaskRCNN:
    pytest.importorskip("torchao")
    return optimize(model, dtype="int8", calibration=IMAGES)


def without_compiling() -> Any:
    """The same arithmetic by PyTorch's operators, in float32 between rounding."""
    return torch.compiler.set_stance("force_eager")


@torch.no_grad()
def test_networks_give_nearly_the_same(model: MaskRCNN, quantized: MaskRCNN) -> None:
    with without_compiling():
        ours, expected = quantized.run_stages(IMAGES[:1]), model.run_stages(IMAGES[:1])
        rois = torch.tensor([[0, 0, 0, 64, 64], [0, 32, 16, 100, 90]], dtype=torch.float32)
        for name, feature in expected.features.items():
            assert ours.features[name].dtype == torch.bfloat16
            assert 0 < relative_error(ours.features[name], feature) < TOLERANCE, name
        outputs = [
            (*one.roi_heads.predict_boxes(stages.features, rois, (128, 128)),
             one.roi_heads.predict_masks(stages.features, rois, (128, 128)),
             one.rpn.predict(stages.images, stages.features).objectness)
            for one, stages in ((quantized, ours), (model, expected))
        ]  # fmt: skip
        for output, wanted in zip(*outputs, strict=True):
            assert output.dtype == torch.float32
            assert 0 < relative_error(output, wanted) < TOLERANCE


def test_every_layer_of_the_networks_is_quantised(model: MaskRCNN, quantized: MaskRCNN) -> None:
    weights = [
        buffer
        for network in quantized.modules()
        if isinstance(network, QuantizedNetwork)
        for buffer in network.graph.buffers()
        if buffer.dtype == torch.int8
    ]
    layers = [
        layer
        for part in (model.backbone, model.roi_heads.box_head, model.roi_heads.mask_head)
        for layer in part.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    assert len(weights) == len(layers) + 2  # the RPN head's 3x3 and its merged predictions


@torch.no_grad()
def test_any_size_of_batch_image_and_rois(quantized: MaskRCNN) -> None:
    with without_compiling():
        assert len(quantized([*IMAGES, torch.rand(3, 70, 99)])) == 3
        threshold, quantized.roi_heads.score_thresh = quantized.roi_heads.score_thresh, 2.0
        assert len(quantized(IMAGES)[0]["boxes"]) == 0
        quantized.roi_heads.score_thresh = threshold
    assert not quantized.eval().training  # torchao's graphs refuse it, unless they are told


@torch.no_grad()
def test_compiled_layers_are_int8_kernels() -> None:
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()).eval()
    network = QuantizedNetwork(layer, torch.rand(2, 16, 8, 8), (0, 2, 3))
    x = torch.rand(1, 16, 12, 8)
    network(x)
    network.quantize()
    assert relative_error(network(x), layer(x)) < TOLERANCE
    with torch.profiler.profile() as profile:
        network(x)
    assert [event.count for event in profile.key_averages() if "qconv" in event.key] == [1]
