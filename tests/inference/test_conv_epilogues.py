"""ReLUs and shortcuts as part of convolutions: a stand-in for cuDNN computes them on the CPU."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.backbone import BasicBlock, Bottleneck, IntermediateLayerGetter
from maskrcnn_scratch.inference import conv_epilogues
from maskrcnn_scratch.inference.conv_epilogues import ConvReLU, FusedBlock, fuse_epilogues
from maskrcnn_scratch.inference.fold_batch_norm import fold_batch_norms
from maskrcnn_scratch.inference.optimize import MergedRPNHead, optimize, with_epilogues
from maskrcnn_scratch.inference.verify_optimized import probe_outputs
from tests.no_sync import fake_gpu, to_fake_gpu
from tests.test_no_sync import batch, small_model
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

    monkeypatch.setattr(conv_epilogues, "uses_cudnn", lambda conv, x: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", conv_relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", conv_add_relu)
    return calls


def folded_block(kind: type = Bottleneck, stride: int = 2) -> nn.Module:
    block = kind(8 if stride > 1 else 4 * kind.expansion, 4, stride, nn.BatchNorm2d).eval()
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_()
            norm.weight.uniform_(0.5, 2)
    assert fold_batch_norms(nn.Sequential(block)) == []
    return block


@pytest.mark.parametrize("on_cudnn", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_blocks(kind, stride, on_cudnn, cudnn, monkeypatch) -> None:
    if not on_cudnn:
        monkeypatch.setattr(conv_epilogues, "uses_cudnn", lambda conv, x: False)
    block = folded_block(kind, stride)
    x = torch.randn(2, block.conv1.in_channels, 9, 8)
    fused = nn.Sequential(copy.deepcopy(block))
    fuse_epilogues(fused)
    assert type(fused[0]) is FusedBlock
    torch.testing.assert_close(fused(x), block(x))
    convs = 3 if kind is Bottleneck else 2
    assert cudnn == ({"relu": convs - 1, "add_relu": 1} if on_cudnn else {})
    assert fused[0].state_dict().keys() == block.state_dict().keys()


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
    model = nn.Sequential(
        nn.Sequential(watched, nn.ReLU()),
        nn.Sequential(reflecting, nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sigmoid()),
        OwnOrder(nn.Conv2d(4, 4, 1), nn.ReLU()),
        unfolded,
        own,
    )
    before = str(model)
    fuse_epilogues(model)
    assert str(model) == before


def test_whole_model(small_model: MaskRCNN, cudnn) -> None:
    model = optimize(small_model)
    expected = probe_outputs(model)
    assert not cudnn
    fused = with_epilogues(model, expected, torch.float32)
    assert cudnn["add_relu"] >= 4 and cudnn["relu"] >= 10
    assert any(isinstance(module, ConvReLU) for module in fused.roi_heads.mask_head.modules())
    assert fused.state_dict().keys() == model.state_dict().keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = torch.rand(3, 96, 128)
        for ours, theirs in zip(fused([image]), model([image]), strict=True):
            torch.testing.assert_close(ours["boxes"], theirs["boxes"])


@pytest.mark.parametrize("refuses", ["error", "wrong"])
def test_without_cudnn_the_model_stays_as_it_is(small_model, cudnn, refuses, monkeypatch) -> None:
    def refuse(x, weight, bias, *geometry) -> Tensor:
        if refuses == "error":
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        return F.conv2d(x, weight, bias, *geometry)  # forgets the ReLU

    model = optimize(small_model)
    expected = probe_outputs(model)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse)
    message = "unable to find an engine" if refuses == "error" else "not equivalent"
    with pytest.warns(UserWarning, match=f"ReLUs stay apart from their convolutions: .*{message}"):
        assert with_epilogues(model, expected, torch.float32) is model


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
    assert count(fuse=False) == 146
    assert count(fuse=True) == 126
