"""Only a plain convolution and a plain batch norm become one layer; all else stays as it is."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.backbone import BasicBlock, Bottleneck, FrozenBatchNorm2d
from maskrcnn_scratch.backbone.resnet import StrideIn1x1Bottleneck
from maskrcnn_scratch.inference import optimize
from maskrcnn_scratch.inference.fold_batch_norm import fold_batch_norms
from maskrcnn_scratch.inference.verify_optimized import relative_error

C = 8


class WeightStandardizedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias, padding=self.padding)


class Conv2dWithoutItsBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, padding=self.padding)


class BatchNormAct2d(nn.BatchNorm2d):
    """As in timm: a norm and its activation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def conv() -> nn.Conv2d:
    return nn.Conv2d(C, C, 3, padding=1)


def shared() -> nn.Sequential:
    one = conv()
    return nn.Sequential(one, nn.BatchNorm2d(C), nn.ReLU(), one, nn.BatchNorm2d(C))


def hooked() -> nn.Sequential:
    net = nn.Sequential(conv(), nn.BatchNorm2d(C))
    net[1].register_forward_hook(lambda module, args, output: output * 1.5)
    return net


class SkipsTheNorm(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](x)


NETWORKS = {
    "weight-standardised": lambda: nn.Sequential(
        WeightStandardizedConv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
    ),
    "shared convolution": shared,
    "norm with activation": lambda: nn.Sequential(conv(), BatchNormAct2d(C)),
    "ignored bias": lambda: nn.Sequential(
        Conv2dWithoutItsBias(C, C, 3, padding=1), nn.BatchNorm2d(C)
    ),
    "hook on a norm": hooked,
    "spectral norm": lambda: nn.Sequential(nn.utils.spectral_norm(conv()), nn.BatchNorm2d(C)),
    "parametrization": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(conv()), nn.BatchNorm2d(C)
    ),
    "own order": lambda: SkipsTheNorm(conv(), nn.BatchNorm2d(C)),
    "no statistics": lambda: nn.Sequential(conv(), nn.BatchNorm2d(C, track_running_stats=False)),
}


def randomized(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.3, 3)
            nn.init.uniform_(module.weight, 0.5, 2)
    return net.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_not_plain_is_left_alone_and_reported(name: str) -> None:
    torch.manual_seed(0)
    net, x = randomized(NETWORKS[name]()), torch.randn(2, C, 9, 9)
    with torch.no_grad():
        expected = net(x)
        left_alone = fold_batch_norms(net)
        assert relative_error(net(x), expected) < 1e-5
    norms = [n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert [line.split(":")[0] for line in left_alone] == norms
    assert len(norms) == (2 if name == "shared convolution" else 1)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_plain_pairs_are_folded(norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    pair = nn.Sequential(conv(), norm(C))
    net = randomized(nn.Sequential(pair, nn.ReLU(), pair))  # the same pair twice is fine
    x = torch.randn(2, C, 9, 9)
    with torch.no_grad():
        expected = net(x)
        assert fold_batch_norms(net) == []
        assert relative_error(net(x), expected) < 1e-5
    assert not any(isinstance(module, norm) for module in net.modules())


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, StrideIn1x1Bottleneck])
def test_blocks_of_a_resnet_are_folded(block: type[BasicBlock] | type[Bottleneck]) -> None:
    torch.manual_seed(0)
    net = randomized(block(C, C, 2, nn.BatchNorm2d))
    x = torch.randn(2, C, 9, 9)
    with torch.no_grad():
        expected = net(x)
        assert fold_batch_norms(net) == []
        assert relative_error(net(x), expected) < 1e-5


@pytest.fixture
def model(small_model: MaskRCNN) -> MaskRCNN:
    return copy.deepcopy(small_model)


def test_a_warning_lists_the_batch_norms_that_stay(model: MaskRCNN) -> None:
    model.backbone.body.bn1.register_forward_hook(lambda module, args, output: output * 1.5)
    image = torch.rand(3, 96, 96)
    with pytest.warns(UserWarning, match=r"^1 batch norms .* backbone\.body\.bn1: it has a hook$"):
        optimized = optimize(model)
    with torch.no_grad():
        expected = model.run_stages([image]).features
        for name, feature in optimized.run_stages([image]).features.items():
            assert relative_error(feature, expected[name]) < 1e-4


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_result_that_moved_is_refused(
    model: MaskRCNN, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By 2 %, which the rounding of bfloat16 would hide."""

    def wrong(model: nn.Module) -> list[str]:
        model.roi_heads.box_predictor.cls_score.weight *= 1.02
        return []

    module = sys.modules[optimize.__module__]
    monkeypatch.setattr(module, "fold_batch_norms", wrong)
    with pytest.raises(ValueError, match=r"class logits differs by .* allowed are 1e-03"):
        optimize(model, dtype=dtype)


def test_a_dtype_that_overflows_is_refused(model: MaskRCNN) -> None:
    model.backbone.fpn.layer_blocks[0][0].bias.data.fill_(1e6)
    with pytest.raises(ValueError, match=r"feature map 0 differs by (inf|nan)"):
        optimize(model, dtype=torch.float16)


def test_networks_are_discovered(model: MaskRCNN) -> None:
    """Those that a swap added, wherever they are; buffers of other modules keep their dtype."""
    model.roi_heads.mask_iou_head = nn.Linear(4, 4)
    model.rpn.extra = nn.Sequential(nn.Conv2d(4, 4, 1))
    model.neck = nn.Conv2d(4, 4, 1)
    model.rpn.grid = nn.Module()
    model.rpn.grid.register_buffer("cells", torch.zeros(3, 4))
    optimized = optimize(model, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in optimized.parameters()} == {torch.bfloat16}
    assert optimized.rpn.grid.cells.dtype == torch.float32
