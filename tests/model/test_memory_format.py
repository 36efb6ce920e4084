"""Convolution weights are stored channels-last when a model moves to a GPU, and only then."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from maskrcnn_scratch import MaskRCNN, generalized_rcnn
from tests.no_sync import fake_gpu, to_fake_gpu


def stored_channels_last(model: nn.Module) -> set[bool]:
    """Of the convolution weights that the two formats store differently."""
    formats = [
        (weight.is_contiguous(), weight.is_contiguous(memory_format=torch.channels_last))
        for weight in model.parameters()
        if weight.dim() == 4
    ]
    return {channels_last for contiguous, channels_last in formats if contiguous != channels_last}


@pytest.fixture
def moves_to_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 stands in for a GPU."""
    monkeypatch.setattr(
        generalized_rcnn, "is_on_gpu", lambda m: next(m.parameters()).dtype == torch.float64
    )


def test_move_to_a_gpu(small_model: MaskRCNN, moves_to_gpu: None) -> None:
    model = copy.deepcopy(small_model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    assert stored_channels_last(model) == {False}
    model.float()
    assert stored_channels_last(model) == {False}
    wrapper = nn.Sequential(model).double()  # as when a model that has it as a part is moved
    assert stored_channels_last(model) == {True}
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(before) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value.to(before[name].dtype), before[name]), name
    wrapper.load_state_dict({f"0.{name}": value for name, value in before.items()})
    assert stored_channels_last(model) == {True}


def test_another_format_on_the_gpu_stays(small_model: MaskRCNN, moves_to_gpu: None) -> None:
    model = copy.deepcopy(small_model).double().to(memory_format=torch.contiguous_format)
    assert stored_channels_last(model) == {False}
    model.double()
    assert stored_channels_last(model) == {False}


def test_where_a_gpu_is() -> None:
    with fake_gpu():
        conv = nn.Conv2d(2, 3, 1)
        assert not generalized_rcnn.is_on_gpu(conv)
        assert generalized_rcnn.is_on_gpu(to_fake_gpu(conv))
    assert not generalized_rcnn.is_on_gpu(nn.ReLU())


def test_on_the_cpu_nothing_changes(small_model: MaskRCNN) -> None:
    model = copy.deepcopy(small_model).double().to("cpu").to("meta")
    assert stored_channels_last(model) == {False}
