"""Fully connected layers by oneDNN: values, gradients, and where PyTorch's own layer runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import onednn
from maskrcnn_scratch.inference.epilogues import fuse_epilogues
from maskrcnn_scratch.onednn import OneDNNLinear


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Name of the activation for each product by oneDNN."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    made: list[str] = []
    multiply = onednn.multiply

    def record(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Any:
        made.append(then)
        return multiply(x, weight, bias, then)

    monkeypatch.setattr(onednn, "multiply", record)
    return made


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 40), (2, 3, 40), (40,)], ids=str)
def test_values_and_gradients_are_as_exact_as_pytorchs(shape, bias, calls) -> None:
    torch.manual_seed(0)
    ours = OneDNNLinear(nn.Linear(40, 24, bias), relu=True)
    exact = copy.deepcopy(ours).double()
    x = torch.randn(shape, requires_grad=True)
    output, expected = ours(x), F.relu(F.linear(x.double(), exact.weight, exact.bias))
    factors = torch.randn(output.shape)
    gradients = torch.autograd.grad((output * factors).sum(), [x, *ours.parameters()])
    exact_gradients = torch.autograd.grad((expected * factors).sum(), [x, *exact.parameters()])
    with torch.no_grad():
        assert relative_error(ours(x), expected) < 1e-6
    assert calls == ["none", "none", "none", "relu"]  # forward, two gradients; without gradients
    assert relative_error(output, expected) < 1e-6
    for gradient, theirs in zip(gradients, exact_gradients, strict=True):
        assert gradient.shape == theirs.shape
        assert relative_error(gradient, theirs) < 1e-6


def test_only_what_is_needed_has_a_gradient(calls) -> None:
    layer = OneDNNLinear(nn.Linear(4, 3))
    layer.weight.requires_grad_(False)
    layer(torch.randn(2, 4)).sum().backward()
    assert calls == ["none"]
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((3,), 2.0))
    x = torch.randn(2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_other_calls_run_as_the_layer_does(calls) -> None:
    linear, x = nn.Linear(4, 3), torch.randn(2, 4)
    layer = OneDNNLinear(linear)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), linear(x))
    assert layer(x[:0]).shape == (0, 3)
    assert torch.export.export(layer, (x,)).module()(x).shape == (2, 3)
    torch.jit.trace(layer, (x,), check_trace=False)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(layer(x), linear(x))
    assert torch.equal(copy.deepcopy(layer).double()(x.double()), linear.double()(x.double()))
    assert not calls


def test_they_take_the_place_of_layers_in_a_model(calls) -> None:
    layers = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 7)).eval()
    fused = copy.deepcopy(layers)
    fuse_epilogues(fused)
    assert [type(layer) for layer in fused] == [OneDNNLinear, nn.Identity, OneDNNLinear]
    assert fused.state_dict().keys() == layers.state_dict().keys()
    x = torch.randn(5, 40)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), layers(x))
    assert calls == ["relu", "none"]
