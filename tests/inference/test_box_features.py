"""The box head of an optimised model takes channels-last features as they lie in memory."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN, TwoMLPHead
from maskrcnn_scratch.inference import optimize
from maskrcnn_scratch.inference.box_features import (
    FlattenChannelsLast,
    use_channels_last_box_features,
)
from maskrcnn_scratch.roi_heads import FastRCNNConvFCHead
from tests.weights.same_detections import assert_same_detections

IMAGE = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))


class Custom(TwoMLPHead):
    pass


@torch.no_grad()
def outputs(model: MaskRCNN) -> tuple[Tensor, Tensor]:
    """Pooled features and the values of the box head, for two RoIs."""
    channels = model.backbone.out_channels
    generator = torch.Generator().manual_seed(1)
    maps = {"0": torch.randn(1, channels, 24, 32, generator=generator)}
    rois = torch.tensor([[0.0, 3, 5, 60, 70], [0, 0, 0, 120, 90]])
    pooled = model.roi_heads.box_roi_pool(maps, rois, [(96, 128)])
    return pooled, model.roi_heads.box_head(pooled)


@pytest.mark.parametrize("convolutions", [False, True])
def test_no_copy_and_the_same_values(small_model: MaskRCNN, convolutions: bool) -> None:
    model = copy.deepcopy(small_model).eval()
    if convolutions:
        model.roi_heads.box_head = FastRCNNConvFCHead(
            (model.backbone.out_channels, 7, 7), (8, 12), (256,), nn.BatchNorm2d
        ).eval()
    pooled, expected = outputs(model)
    assert pooled.is_contiguous()
    assert use_channels_last_box_features(model) is None
    faster, values = outputs(model)
    assert torch.equal(faster, pooled)
    assert faster.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)  # sums in another order
    (flatten,) = [layer for layer in model.roi_heads.box_head if type(layer) is FlattenChannelsLast]
    assert flatten(faster).data_ptr() == faster.data_ptr()
    again = model.roi_heads.box_head(pooled)  # of any memory format
    torch.testing.assert_close(again, values, rtol=1e-4, atol=1e-5)


def test_a_head_without_linear_layers_is_left_alone(small_model: MaskRCNN) -> None:
    model = copy.deepcopy(small_model)
    shape = (model.backbone.out_channels, 7, 7)
    model.roi_heads.box_head = FastRCNNConvFCHead(shape, (8,), (), nn.BatchNorm2d)
    assert use_channels_last_box_features(model) == "box_head is a FastRCNNConvFCHead"


def test_an_optimized_model_is_optimized_again_without_a_warning(small_model: MaskRCNN) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert use_channels_last_box_features(optimize(small_model)) is None


def test_optimized_model_pickles_copies_and_exports(small_model: MaskRCNN) -> None:
    keys = list(small_model.state_dict())
    optimized = optimize(small_model)
    assert type(optimized.roi_heads.box_head[0]) is FlattenChannelsLast
    assert optimized.roi_heads.box_roi_pool.channels_last
    assert not small_model.roi_heads.box_roi_pool.channels_last
    assert list(small_model.state_dict()) == keys
    with pytest.raises(RuntimeError, match="fc6"):  # its columns have another order
        optimized.load_state_dict(small_model.state_dict())
    with torch.no_grad():
        expected = optimized([IMAGE])
        assert_same_detections(expected, small_model.eval()([IMAGE]))
        for other in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
            assert torch.equal(other([IMAGE])[0]["boxes"], expected[0]["boxes"])
    pooled, values = outputs(optimized)
    exported = torch.export.export(optimized.roi_heads.box_head, (pooled,)).module()
    # An exported graph has PyTorch's own layers, which add up in another order.
    torch.testing.assert_close(exported(pooled), values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("custom head", "box_head is a Custom"),
        ("hook", "box_head is a TwoMLPHead with hooks"),
        ("custom pool", "box_roi_pool is a Pool"),
    ],
)
def test_other_parts_are_left_alone_and_named(
    small_model: MaskRCNN, change: str, reason: str
) -> None:
    model = copy.deepcopy(small_model).eval()
    heads = model.roi_heads
    if change == "custom head":
        heads.box_head.__class__ = Custom
    elif change == "hook":
        heads.box_head.register_forward_hook(lambda *_: None)
    else:
        heads.box_roi_pool.__class__ = type("Pool", (type(heads.box_roi_pool),), {})
    with pytest.warns(UserWarning, match=f"box features are copied before the box head: {reason}"):
        optimized = optimize(model)
    assert type(optimized.roi_heads.box_head) is type(heads.box_head)
    assert torch.equal(optimized.roi_heads.box_head.fc6.weight, heads.box_head.fc6.weight)
    assert not optimized.roi_heads.box_roi_pool.channels_last


def test_contiguous_features_keep_their_order(small_model: MaskRCNN) -> None:
    optimized = optimize(small_model, memory_format=torch.contiguous_format)
    assert type(optimized.roi_heads.box_head) is TwoMLPHead
    assert not optimized.roi_heads.box_roi_pool.channels_last
