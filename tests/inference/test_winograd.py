"""Winograd convolutions in a model: what is replaced, and that nothing else changes."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.conv import Conv2dNormActivation
from maskrcnn_scratch.export import ExportOptions, export_program
from maskrcnn_scratch.inference import optimize
from maskrcnn_scratch.inference.winograd import WinogradConv2d, use_winograd
from maskrcnn_scratch.parity.photographs import photographs
from maskrcnn_scratch.structures import Result
from maskrcnn_scratch.winograd import reason_to_keep
from tests.weights.same_detections import assert_same_detections

# Relative error of one layer, float32 against float32: twice that of tests/ops/test_conv3x3.py.
TOLERANCE = 3e-6


def conv2d(in_channels: int = 16, out_channels: int = 32, **options) -> nn.Conv2d:
    options = {"kernel_size": 3, "padding": 1, **options}
    return nn.Conv2d(in_channels, out_channels, **options).requires_grad_(False)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert (found - expected).norm() <= TOLERANCE * expected.norm()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_gives_what_the_convolution_gives(bias: bool, m: int) -> None:
    conv = conv2d(bias=bias)
    winograd, x = WinogradConv2d(conv, m), images(2, 16, 9, 10)
    assert_close(winograd(x), conv(x))
    assert not torch.equal(winograd(x), conv(x))  # it did take the other way
    assert_close(WinogradConv2d(conv, m, relu=True)(x), conv(x).relu())


def test_state_dict_is_that_of_the_convolution() -> None:
    conv, other, x = conv2d(), conv2d(), images(1, 16, 8, 8)
    winograd = WinogradConv2d(conv, 4)
    assert winograd.state_dict().keys() == conv.state_dict().keys()
    assert winograd.weight is conv.weight
    model = nn.Sequential(winograd)
    model.load_state_dict(nn.Sequential(other).state_dict())
    assert_close(model(x), other(x))


def test_copies_and_pickles() -> None:
    winograd, x = WinogradConv2d(conv2d(), 4, relu=True), images(1, 16, 8, 8)
    for other in (copy.deepcopy(winograd), pickle.loads(pickle.dumps(winograd))):
        assert torch.equal(other(x), winograd(x))


def test_other_dtypes_run_as_the_convolution_does() -> None:
    conv, x = conv2d(), images(1, 16, 8, 8)
    winograd = WinogradConv2d(conv, 2, relu=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(winograd(x), conv(x).relu())
    wide = copy.deepcopy(winograd).double()
    assert torch.equal(wide(x.double()), copy.deepcopy(conv).double()(x.double()).relu())
    assert_close(wide.float()(x), conv(x).relu())
    with pytest.raises(RuntimeError):  # as in nn.Conv2d
        winograd(x.double())


def test_gradients_are_those_of_the_convolution() -> None:
    conv, x = conv2d(), images(1, 16, 8, 8).requires_grad_()
    (expected,) = torch.autograd.grad(conv(x).relu().square().sum(), x)
    (found,) = torch.autograd.grad(WinogradConv2d(conv, 4, relu=True)(x).square().sum(), x)
    assert torch.equal(found, expected)
    conv.requires_grad_(True)
    assert WinogradConv2d(conv, 4)(x.detach()).requires_grad


def test_exports_as_a_plain_convolution() -> None:
    conv, x = conv2d(), images(1, 16, 8, 8)
    program = torch.export.export(WinogradConv2d(conv, 4, relu=True), (x,))
    assert "conv3x3" not in str(program.graph)
    assert_close(program.module()(x), conv(x).relu())
    traced = torch.jit.trace(WinogradConv2d(conv, 4, relu=True), x, check_trace=False)
    assert "conv3x3" not in str(traced.graph)


def test_compiles() -> None:
    conv, x = conv2d(), images(1, 16, 8, 8)
    winograd = WinogradConv2d(conv, 4, relu=True)
    compiled = torch.compile(winograd, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), winograd(x))


class Model(nn.Module):
    """Convolutions in a row, in blocks, and by attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Conv2dNormActivation(16, 32)
        self.row = nn.Sequential(conv2d(32, 32), nn.Identity(), nn.ReLU(), conv2d(32, 32))
        self.conv = conv2d(32, 64)
        self.small = conv2d(64, 8)
        self.strided = conv2d(64, 32, stride=2)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.row(self.block(x)))
        return self.small(x).mean(1, keepdim=True) + x + self.strided(x).mean()


@pytest.mark.parametrize("tile", ["f2", "f4"])
def test_replaces_what_it_can_and_names_the_rest(tile: str) -> None:
    model = Model()
    x, names = images(1, 16, 12, 9), list(model.state_dict())
    expected = model(x)
    left_alone = use_winograd(model, tile)
    assert left_alone == {
        "small": "it has 64 input and 8 output channels, which are not multiples of 16 and 32"
    }
    replaced = {n: c.relu for n, c in model.named_modules() if isinstance(c, WinogradConv2d)}
    assert replaced == {"block.0": True, "row.0": True, "row.3": False, "conv": False}
    assert type(model.row[2]) is nn.Identity
    assert list(model.state_dict()) == names
    assert_close(model(x), expected)
    with pytest.raises(ValueError, match=r"no 3x3 convolution .*block\.0: it is a WinogradConv2d"):
        use_winograd(model, tile)


@pytest.mark.slow
@torch.no_grad()
def test_generated_code() -> None:
    """Inductor's code around the kernel, with the options and layout of ``optimize``."""
    model, x = Model().to(memory_format=torch.channels_last), images(2, 16, 12, 9)
    x = x.to(memory_format=torch.channels_last)
    expected = model(x)
    use_winograd(model, "f4")
    compiled = torch.compile(model, fullgraph=True, options={"freezing": True})
    assert_close(compiled(x), expected)


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_reasons_to_keep_a_convolution() -> None:
    for conv, reason in [
        (Doubled(16, 32, 3, padding=1), "it is a Doubled, not exactly nn.Conv2d"),
        (conv2d(kernel_size=1), r"its kernel_size is \(1, 1\), not \(3, 3\)"),
        (conv2d(stride=2), "its stride is"),
        (conv2d(padding=0), "its padding is"),
        (conv2d(padding="same"), "its padding is same"),
        (conv2d(dilation=2), "its dilation is"),
        (conv2d(32, groups=2), "its groups is 2, not 1"),
        (conv2d(padding_mode="reflect"), "its padding_mode is reflect, not zeros"),
        (conv2d(8), "it has 8 input and 32 output channels"),
        (conv2d().double(), r"its weight is torch\.float64, not torch\.float32"),
        (conv2d(device="meta"), "its weight is on meta, not on the CPU"),
    ]:
        found = reason_to_keep(conv)
        assert found is not None
        assert re.search(reason, found), found
    hooked = conv2d()
    hooked.register_forward_hook(lambda *args: None)
    assert reason_to_keep(hooked) == "it has forward hooks"
    assert reason_to_keep(conv2d()) is None


def test_a_hooked_relu_stays() -> None:
    model, seen = nn.Sequential(conv2d(), nn.ReLU()), []
    model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    use_winograd(model, "f2")
    assert torch.equal(model(images(1, 16, 8, 8)), seen[0])


def test_wrong_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="winograd must be True, 'f2' or 'f4', not 'f6'"):
        use_winograd(Model(), "f6")
    with pytest.raises(ValueError, match="the model has no 3x3 convolution that can be replaced"):
        use_winograd(nn.Linear(3, 3), "f2")


def winograd_layers(model: nn.Module) -> dict[str, WinogradConv2d]:
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, WinogradConv2d)}


@pytest.fixture(scope="module")
def expected(model: MaskRCNN) -> list[Result]:
    """Of the first two photographs."""
    with torch.no_grad():
        return [model([photograph])[0] for photograph in photographs()[:2]]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("winograd", ["f2", True])
def test_optimized_model_finds_the_same(
    model: MaskRCNN, expected: list[Result], winograd: bool | str
) -> None:
    fast = optimize(model, winograd=winograd)
    # The 13 of ResNet-50 with stride 1, 4 of the FPN, 1 of the RPN and 4 of the mask head.
    assert len(winograd_layers(fast)) == 22
    assert {layer.m for layer in winograd_layers(fast).values()} == {2 if winograd == "f2" else 4}
    assert not winograd_layers(model)
    for photograph, result in zip(photographs(), expected, strict=False):
        assert_same_detections(fast([photograph]), [result])


def traced_only(
    compile: Callable, run: Callable, *, options: dict[str, bool], fullgraph: bool
) -> Callable:
    """``torch.compile`` without Inductor, whose options it does not pass on."""
    return compile(run, backend="aot_eager", fullgraph=fullgraph)


@pytest.mark.slow
@torch.no_grad()
def test_optimized_model_compiles_and_exports(
    small_model: MaskRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as ``optimize`` does it, to one graph that is run without generated code.

    Code is generated in ``test_generated_code`` and, for a whole model, in ``test_optimize.py``.
    """
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    expected = small_model([image])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", partial(traced_only, torch.compile))
        compiled = optimize(small_model, winograd=True, compile=True)
    assert_same_detections(compiled([image]), expected)
    fast = optimize(small_model, winograd=True)
    assert winograd_layers(fast)
    program = export_program(fast, ExportOptions((96, 128)))
    assert "conv3x3" not in str(program.graph)


def test_a_model_in_another_dtype_is_refused(small_model: MaskRCNN) -> None:
    with pytest.raises(ValueError, match=r"can be replaced .*: its weight is torch\.bfloat16"):
        optimize(small_model, winograd=True, dtype=torch.bfloat16)


def test_what_was_left_alone_is_a_warning(small_model: MaskRCNN) -> None:
    custom = copy.deepcopy(small_model)
    first = custom.backbone.fpn.layer_blocks[0]
    first[0] = Doubled(first[0].in_channels, first[0].out_channels, 3, padding=1)
    message = r"1 3x3 convolutions run without Winograd; .*fpn\.layer_blocks\.0\.0: it is a Doubled"
    with pytest.warns(UserWarning, match=message):
        optimize(custom, winograd="f2")
