"""ReLUs and shortcuts as part of layers: by oneDNN, and by a stand-in for cuDNN on the CPU."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.backbone import (
    BasicBlock,
    Bottleneck,
    FeaturePyramidNetwork,
    IntermediateLayerGetter,
    LastLevelMaxPool,
)
from maskrcnn_scratch.inference import epilogues
from maskrcnn_scratch.inference.epilogues import (
    ConvReLU,
    FusedBlock,
    FusedBlocks,
    fuse_epilogues,
)
from maskrcnn_scratch.inference.fold_batch_norm import fold_batch_norms
from maskrcnn_scratch.inference.optimize import MergedRPNHead, optimize
from maskrcnn_scratch.inference.winograd import WinogradConv2d, use_winograd
from tests.no_sync import fake_gpu, to_fake_gpu
from tests.test_no_sync import batch, small_model
from tests.weights.same_detections import assert_same_detections
from tools.benchmarks.launches import count_operators


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """cuDNN's two operations on any device; counts their calls."""
    calls: Counter[str] = Counter()

    def conv_relu(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry) -> Tensor:
        calls["relu"] += 1
        return F.conv2d(x, weight, bias, *geometry).relu()

    def conv_add_relu(x, weight, z, alpha, bias, *geometry) -> Tensor:
        calls["add_relu"] += 1
        return (F.conv2d(x, weight, bias, *geometry) + alpha * z).relu()

    monkeypatch.setattr(epilogues, "uses_cudnn", lambda conv, x: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", conv_relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", conv_add_relu)
    return calls


class OneDNN:
    """oneDNN's operations; counts their calls."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._convolution_pointwise_ = self

    def _convolution_pointwise(self, *args: Any) -> Tensor:
        self.calls["relu"] += 1
        return torch.ops.mkldnn._convolution_pointwise(*args)

    def binary(self, *args: Any) -> Tensor:
        self.calls["add"] += 1
        return torch.ops.mkldnn._convolution_pointwise_.binary(*args)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of oneDNN's operations."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    counted = OneDNN()
    monkeypatch.setattr(epilogues, "onednn", counted)
    return counted.calls


def folded_block(kind: type = Bottleneck, stride: int = 2) -> nn.Module:
    block = kind(8 if stride > 1 else 4 * kind.expansion, 4, stride, nn.BatchNorm2d).eval()
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_()
            norm.weight.uniform_(0.5, 2)
    assert fold_batch_norms(nn.Sequential(block)) == []
    return block


@pytest.mark.parametrize("by", ["cudnn", "onednn", None])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_blocks(kind, stride, by, request, monkeypatch) -> None:
    calls = request.getfixturevalue(by) if by else Counter()
    if by is None:
        monkeypatch.setattr(epilogues, "uses_onednn", lambda layer, x: False)
    block = folded_block(kind, stride)
    x = torch.randn(2, block.conv1.in_channels, 9, 8)
    before = x.clone()
    fused = nn.Sequential(copy.deepcopy(block), nn.Identity())
    fuse_epilogues(fused)
    assert type(fused[0]) is FusedBlock
    torch.testing.assert_close(fused(x), block(x))
    assert torch.equal(x, before)
    convs = 3 if kind is Bottleneck else 2
    adds = {"cudnn": 1, "onednn": int(stride == 2), None: 0}[by]  # may not overwrite x
    assert calls["relu"] == (convs - 1 if by else 0)
    assert calls["add_relu"] + calls["add"] == adds
    assert fused[0].state_dict().keys() == block.state_dict().keys()


@pytest.mark.parametrize("hooked", [None, 0, 1])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_blocks_write_over_their_input_if_nobody_else_has_it(memory_format, hooked, onednn) -> None:
    blocks = nn.Sequential(*(folded_block(stride=1) for _ in range(4)))
    x = torch.randn(2, 16, 9, 8).contiguous(memory_format=memory_format)
    expected = [x]
    for block in blocks:
        expected.append(block(expected[-1]))
    model = nn.Sequential(copy.deepcopy(blocks))
    fuse_epilogues(model)
    stage = model[0]
    assert type(stage) is FusedBlocks
    assert stage.state_dict().keys() == blocks.state_dict().keys()
    seen: list[Tensor] = []
    if hooked is not None:
        stage[hooked].register_forward_hook(lambda module, args, output: seen.append(output))
    before = x.clone()
    torch.testing.assert_close(stage(x), expected[-1])
    assert torch.equal(x, before)
    assert onednn["add"] == (3 if hooked is None else 2)
    for output in seen:
        torch.testing.assert_close(output, expected[hooked + 1])


def test_a_shortcut_that_a_hook_has_seen_is_not_written_over(onednn) -> None:
    model = nn.Sequential(folded_block(stride=2), nn.Identity())
    fuse_epilogues(model)
    seen: list[Tensor] = []
    model[0].downsample.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 8, 9, 8)
    model(x)
    torch.testing.assert_close(seen[0], model[0].downsample[0](x), rtol=0, atol=0)
    assert onednn["add"] == 0


def test_pyramid_adds_to_the_upsampled_maps(onednn) -> None:
    fpn = FeaturePyramidNetwork([8, 16, 24], 8, LastLevelMaxPool()).eval()
    stages = {str(i): torch.randn(2, 8 * (i + 1), 9 >> i, 13 >> i) for i in range(3)}
    before = copy.deepcopy(stages)
    expected = fpn(stages)
    fused = copy.deepcopy(nn.Sequential(fpn))
    fuse_epilogues(fused)
    assert fused.state_dict().keys() == nn.Sequential(fpn).state_dict().keys()
    torch.testing.assert_close(fused(stages), expected)
    torch.testing.assert_close(stages, before, rtol=0, atol=0)
    assert onednn["add"] == 2
    with_norm = FeaturePyramidNetwork([8, 16, 24], 8, norm_layer=nn.BatchNorm2d).eval()
    expected = with_norm(stages)
    fuse_epilogues(nn.Sequential(with_norm))
    torch.testing.assert_close(with_norm(stages), expected, rtol=0, atol=0)
    assert onednn["add"] == 2  # a batch norm that was not folded comes before the sum


def test_another_merge_of_levels_stays(onednn) -> None:
    class Largest(FeaturePyramidNetwork):
        @staticmethod
        def merge(block, stage, coarser) -> Tensor:
            return torch.maximum(block(stage), F.interpolate(coarser, size=stage.shape[-2:]))

    fpn = Largest([8, 16], 8)
    stages = {str(i): torch.randn(2, 8 * (i + 1), 9 >> i, 13 >> i) for i in range(2)}
    expected = fpn(stages)
    fuse_epilogues(nn.Sequential(fpn))
    torch.testing.assert_close(fpn(stages), expected, rtol=0, atol=0)
    assert not onednn


@pytest.mark.parametrize(
    "read, fused", [(["maxpool"], True), (["relu", "maxpool"], True), (["bn1", "maxpool"], False)]
)
def test_stem(read, fused, cudnn) -> None:
    """Convolution, batch norm and ReLU of a ResNet, unless the network reads what lies between."""
    stem = IntermediateLayerGetter(
        nn.ModuleDict(
            {
                "conv1": nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False),
                "bn1": nn.BatchNorm2d(8),
                "relu": nn.ReLU(),
                "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
            }
        ),
        {name: name for name in read},
    ).eval()
    assert fold_batch_norms(stem) == []
    x = torch.randn(2, 3, 20, 17)
    expected, before = stem(x), list(stem.state_dict())
    fuse_epilogues(stem)
    torch.testing.assert_close(stem(x), expected)
    assert cudnn["relu"] == int(fused)
    assert list(stem.state_dict()) == before


def test_what_is_not_exactly_known_is_left_alone(cudnn) -> None:
    class OwnConv(nn.Conv2d):
        pass

    class OwnOrder(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](x) + self[0](x)

    watched, reflecting = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding_mode="reflect")
    watched.register_forward_hook(lambda *_: None)
    unfolded = Bottleneck(16, 4, 1, nn.BatchNorm2d)
    own = folded_block(stride=1)
    own.conv2 = OwnConv(4, 4, 3, padding=1)
    pooled = folded_block(stride=2)
    pooled.downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 16, 1))
    model = nn.Sequential(
        nn.Sequential(watched, nn.ReLU()),
        nn.Sequential(reflecting, nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sigmoid()),
        OwnOrder(nn.Conv2d(4, 4, 1), nn.ReLU()),
        unfolded,
        own,
        pooled,
    )
    before = str(model)
    fuse_epilogues(model)
    assert str(model) == before


@pytest.mark.parametrize("by", ["cudnn", "onednn"])
def test_whole_model(small_model: MaskRCNN, by, request) -> None:
    small_model.eval()
    calls = request.getfixturevalue(by)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = optimize(small_model)
    calls.clear()
    image = torch.rand(3, 96, 128)
    assert_same_detections(fused([image]), small_model([image]))
    assert calls["add_relu"] + calls["add"] >= 4 and calls["relu"] >= 10
    assert any(isinstance(module, ConvReLU) for module in fused.roi_heads.mask_head.modules())


@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_winograd_takes_the_relu_within_a_block(kind) -> None:
    block = kind(32 * kind.expansion, 32, 1, nn.BatchNorm2d).eval()
    fold_batch_norms(block)
    x = torch.randn(2, 32 * kind.expansion, 9, 8).contiguous(memory_format=torch.channels_last)
    expected = block(x)
    model = nn.Sequential(block)
    use_winograd(model, "f2")
    fuse_epilogues(model)
    convs = [m for m in model.modules() if type(m) is WinogradConv2d]
    assert [conv.relu for conv in convs] == ([True, False] if kind is BasicBlock else [True])
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("refuses", ["error", "wrong"])
def test_without_cudnn_the_model_stays_as_it_is(small_model, cudnn, refuses, monkeypatch) -> None:
    def refuse(x, weight, bias, *geometry) -> Tensor:
        if refuses == "error":
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        return F.conv2d(x, weight, bias, *geometry)  # forgets the ReLU

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse)
    message = "unable to find an engine" if refuses == "error" else "not equivalent"
    with pytest.warns(UserWarning, match=f"ReLUs stay apart from their convolutions: .*{message}"):
        model = optimize(small_model)
    assert not any(isinstance(module, (ConvReLU, FusedBlock)) for module in model.modules())


def test_operators_per_image_of_an_optimized_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; a folded bias, which is a kernel of its own there, is not even counted."""

    def count(fuse: bool) -> int:
        with fake_gpu():
            model = to_fake_gpu(small_model().eval())
            fold_batch_norms(model)
            model.rpn.head = MergedRPNHead(model.rpn.head)
            if fuse:
                fuse_epilogues(model)
            images, _ = batch("cuda")
            return count_operators(lambda: model.run_batch(model.transform(images[:1])[0])).total()

    aten = torch.ops.aten.convolution
    monkeypatch.setattr(
        torch, "cudnn_convolution_relu",
        lambda x, w, b, s, p, d, g: aten(x, w, b, s, p, d, False, [0, 0], g),
    )  # fmt: skip
    monkeypatch.setattr(
        torch, "cudnn_convolution_add_relu",
        lambda x, w, z, alpha, b, s, p, d, g: aten(x, w, b, s, p, d, False, [0, 0], g),
    )  # fmt: skip
    assert count(fuse=False) == 142
    assert count(fuse=True) == 122
