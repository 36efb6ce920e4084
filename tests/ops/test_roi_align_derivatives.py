"""RoIAlign's derivatives of second order and in forward mode, against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from maskrcnn_scratch import ops
from tests.ops.inputs import random_rois

LEVELS = torch.tensor([0, 1, 0, 1, 0])
RATIOS = pytest.mark.parametrize("sampling_ratio", [-1, 2])
FORMATS = pytest.mark.parametrize("channels_last", [False, True])


def maps(channels_last: bool = False) -> list[Tensor]:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return [
        torch.randn(2, 2, size, size + 2, dtype=torch.float64)
        .to(memory_format=memory_format)
        .requires_grad_()
        for size in (5, 3)
    ]


def pool(*features: Tensor, sampling_ratio: int = 2, channels_last: bool = False) -> Tensor:
    rois = random_rois(5, 2, 10, 14).double()
    return ops.multiscale_roi_align(
        features, rois, LEVELS, [0.5, 0.25], (2, 3), sampling_ratio, channels_last=channels_last
    )


def squared(*features: Tensor, **options) -> Tensor:
    """Not linear in the features, so that no second derivative is zero."""
    return pool(*features, **options) ** 3


@RATIOS
@FORMATS
def test_second_order(sampling_ratio: int, channels_last: bool) -> None:
    options = {"sampling_ratio": sampling_ratio, "channels_last": channels_last}
    for function in (pool, squared):
        assert gradgradcheck(lambda *f, g=function: g(*f, **options), maps(channels_last))


@RATIOS
@FORMATS
def test_forward_mode(sampling_ratio: int, channels_last: bool) -> None:
    assert gradcheck(
        lambda *f: pool(*f, sampling_ratio=sampling_ratio, channels_last=channels_last),
        maps(channels_last),
        check_forward_ad=True,
    )


def test_forward_over_reverse() -> None:
    assert gradgradcheck(squared, maps(), check_fwd_over_rev=True)


def test_hessian_vector_product_by_double_backward_and_by_forward_over_reverse() -> None:
    features, directions = maps(), [torch.randn_like(map) for map in maps()]
    grads = torch.autograd.grad(squared(*features).sum(), features, create_graph=True)
    product = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    expected = torch.autograd.grad(product, features)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(features, directions, strict=True)]
        grads = torch.autograd.grad(squared(*duals).sum(), duals)
        tangents = [forward_ad.unpack_dual(grad).tangent for grad in grads]
    for ours, theirs in zip(tangents, expected, strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs)


def test_one_map_with_a_tangent_is_enough() -> None:
    first, second = maps()
    tangent = torch.randn_like(first)
    with forward_ad.dual_level():
        pooled = pool(forward_ad.make_dual(first, tangent), second)
        ours = forward_ad.unpack_dual(pooled).tangent
    torch.testing.assert_close(ours, pool(tangent, torch.zeros_like(second)))


def test_jvp_of_torch_func() -> None:
    features, tangents = [m.detach() for m in maps()], [torch.randn_like(m) for m in maps()]
    value, tangent = torch.func.jvp(pool, tuple(features), tuple(tangents))
    torch.testing.assert_close(value, pool(*features))
    torch.testing.assert_close(tangent, pool(*tangents).detach())


def test_a_gradient_that_is_not_used_counts_as_zero() -> None:
    features = maps()
    (grad, _) = torch.autograd.grad(squared(*features).sum(), features, create_graph=True)
    both = torch.autograd.grad(grad.square().sum(), features)
    assert both[0].any() and not both[1].any()
