from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import reference
from tests.ops.inputs import random_rois

SCALES = [1 / 4, 1 / 8, 1 / 16]
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def pyramid(dtype: torch.dtype = torch.float32, channels: int = 19) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, channels, 96 // 2**level, 128 // 2**level, generator=generator).to(dtype)
        for level in range(3)
    ]


def random_levels(count: int) -> Tensor:
    return torch.randint(3, (count,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3, 16, 37])
def test_has_the_bits_of_torchvision(
    channels: int, sampling_ratio: int, aligned: bool, memory_format: str
) -> None:
    feature = torch.randn(2, channels, 25, 38).to(memory_format=FORMATS[memory_format])
    rois = random_rois(60, 2, 400, 600)
    args = (rois, (7, 5), 1 / 16, sampling_ratio, aligned)
    assert torch.equal(
        ops.roi_align(feature, *args), torchvision.ops.roi_align(feature.contiguous(), *args)
    )


@pytest.mark.parametrize("count", [5, 400])  # few RoIs read the maps as they are, many reorder them
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_levels_are_torchvisions_one_by_one(
    memory_format: str, channels_last: bool, count: int
) -> None:
    features = [f.to(memory_format=FORMATS[memory_format]) for f in pyramid()]
    rois, levels = random_rois(count, 2, 384, 512), random_levels(count)
    pooled = ops.multiscale_roi_align(
        features, rois, levels, SCALES, 7, 2, channels_last=channels_last
    )
    for level, (feature, scale) in enumerate(zip(features, SCALES, strict=True)):
        on_level = levels == level
        expected = torchvision.ops.roi_align(feature.contiguous(), rois[on_level], 7, scale, 2)
        assert torch.equal(pooled[on_level], expected)
    expected_format = torch.channels_last if channels_last else torch.contiguous_format
    assert pooled.is_contiguous(memory_format=expected_format)


def test_list_of_boxes() -> None:
    feature = torch.randn(2, 3, 20, 30)
    boxes = [torch.rand(4, 4) * 10 + torch.tensor([0.0, 0, 5, 5]), torch.zeros(0, 4)]
    expected = torchvision.ops.roi_align(feature, boxes, 3, 1.0, 2)
    assert torch.equal(ops.roi_align(feature, boxes, 3, 1.0, 2), expected)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    channels=st.integers(1, 9),
    boxes=st.lists(st.tuples(*[st.floats(-40, 60, width=32)] * 4), max_size=6),
    pooled=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    scale=st.sampled_from([1.0, 0.5, 0.25]),
    sampling_ratio=st.integers(-1, 3),
    aligned=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_equals_the_reference(
    size, channels, boxes, pooled, scale, sampling_ratio, aligned, dtype
) -> None:
    feature = torch.randn(1, channels, *size, dtype=dtype)
    rois = torch.tensor([(0, *box) for box in boxes], dtype=dtype).reshape(-1, 5)
    levels = torch.zeros(len(boxes), dtype=torch.int64)
    arguments = (rois, levels, [scale], *pooled, sampling_ratio, aligned, False)
    expected = reference.multiscale_roi_align([feature], *arguments)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for memory_format in FORMATS.values():
        pooled_by_kernel = torch.ops.maskrcnn_scratch.multiscale_roi_align(
            [feature.to(memory_format=memory_format)], *arguments
        )
        torch.testing.assert_close(pooled_by_kernel, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype: torch.dtype, memory_format: str) -> None:
    features = [f.to(memory_format=FORMATS[memory_format]) for f in pyramid(dtype)]
    rois, levels = random_rois(50, 2, 384, 512), random_levels(50)
    pooled = ops.multiscale_roi_align(features, rois, levels, SCALES, 7, 2)
    in_float32 = [feature.float() for feature in features]
    expected = ops.multiscale_roi_align(in_float32, rois, levels, SCALES, 7, 2).to(dtype)
    assert torch.equal(pooled, expected)


def test_autocast_is_torchvisions() -> None:
    feature, rois = torch.randn(2, 8, 20, 30), random_rois(30, 2, 80, 120)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float32):
            pooled = ops.roi_align(feature.to(dtype), rois, 7, 1 / 4, 2)
            expected = torchvision.ops.roi_align(feature.to(dtype), rois, 7, 1 / 4, 2)
            assert pooled.dtype == expected.dtype
            assert torch.equal(pooled, expected)


def test_any_strides() -> None:
    feature = torch.randn(3, 40, 2, 4, 30)[::2, :, 1].permute(0, 2, 1, 3)[..., ::2]
    rois = random_rois(20, 2, 40, 15).repeat(1, 2)[:, :5]
    expected = torchvision.ops.roi_align(feature.contiguous(), rois.contiguous(), 3, 1.0, 2)
    assert torch.equal(ops.roi_align(feature, rois, 3, 1.0, 2), expected)
    expanded = torch.randn(1, 4, 9, 9).expand(2, 4, 9, 9)
    expected = torchvision.ops.roi_align(expanded.contiguous(), rois, 3, 1.0, 2)
    assert torch.equal(ops.roi_align(expanded, rois, 3, 1.0, 2), expected)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_gradcheck(aligned: bool, sampling_ratio: int, memory_format: str) -> None:
    features = [
        torch.randn(2, 2, size, size + 2, dtype=torch.float64)
        .to(memory_format=FORMATS[memory_format])
        .requires_grad_()
        for size in (5, 3)
    ]
    rois = random_rois(5, 2, 10, 14).double()
    levels = torch.tensor([0, 1, 0, 1, 0])

    def pool(*features: Tensor) -> Tensor:
        return ops.multiscale_roi_align(
            features, rois, levels, [0.5, 0.25], (2, 3), sampling_ratio, aligned
        )

    assert torch.autograd.gradcheck(pool, features)


@pytest.mark.parametrize("grad_format", FORMATS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_gradient_is_torchvisions(
    sampling_ratio: int, memory_format: str, grad_format: str
) -> None:
    rois = random_rois(80, 2, 400, 600)
    feature = torch.randn(2, 70, 25, 38)
    ours = feature.clone(memory_format=FORMATS[memory_format]).requires_grad_()
    theirs = feature.clone().requires_grad_()
    grad = torch.randn(80, 70, 7, 7)
    ops.roi_align(ours, rois, 7, 1 / 16, sampling_ratio).backward(
        grad.to(memory_format=FORMATS[grad_format])
    )
    torchvision.ops.roi_align(theirs, rois, 7, 1 / 16, sampling_ratio).backward(grad)
    # Sums of some 100 terms near one, in another order.
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=1e-5)
    assert ours.grad.is_contiguous(memory_format=FORMATS[memory_format])


def test_backward_equals_the_reference() -> None:
    rois, levels = random_rois(30, 2, 384, 512).double(), random_levels(30)
    grad = torch.randn(30, 5, 7, 7, dtype=torch.float64)
    heights, widths = [96, 48, 24], [128, 64, 32]
    arguments = (grad, rois, levels, SCALES, heights, widths, 2, 2, True, False, False)
    kernel = torch.ops.maskrcnn_scratch.multiscale_roi_align_backward(*arguments)
    expected = reference.multiscale_roi_align_backward(*arguments)
    for ours, theirs in zip(kernel, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_backward_is_deterministic_for_any_number_of_threads() -> None:
    features = [f.requires_grad_() for f in pyramid(channels=130)]
    rois, levels = random_rois(200, 2, 384, 512), random_levels(200)
    grad = torch.randn(200, 130, 7, 7)
    threads = torch.get_num_threads()
    try:
        grads = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            pooled = ops.multiscale_roi_align(features, rois, levels, SCALES, 7, 2)
            grads.append(torch.autograd.grad(pooled, features, grad))
    finally:
        torch.set_num_threads(threads)
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_of_half_types_is_summed_in_float32(dtype: torch.dtype) -> None:
    rois = random_rois(40, 1, 25, 38)
    feature = torch.randn(1, 6, 25, 38, dtype=dtype)
    grad = torch.randn(40, 6, 7, 7).to(dtype)
    grads = {}
    for sum_dtype in (dtype, torch.float32):
        leaf = feature.detach().to(sum_dtype).requires_grad_()
        ops.roi_align(leaf, rois, 7, 1.0, 2).backward(grad.to(sum_dtype))
        grads[sum_dtype] = leaf.grad
    assert torch.equal(grads[dtype], grads[torch.float32].to(dtype))


def test_empty() -> None:
    feature = torch.randn(2, 3, 8, 8, requires_grad=True)
    pooled = ops.roi_align(feature, torch.zeros(0, 5), 7)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert feature.grad is not None and torch.equal(feature.grad, torch.zeros(2, 3, 8, 8))
    assert ops.roi_align(torch.zeros(1, 0, 8, 8), torch.zeros(4, 5), 7).shape == (4, 0, 7, 7)
    assert ops.roi_align(torch.zeros(0, 3, 8, 8), torch.zeros(0, 5), 7).shape == (0, 3, 7, 7)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
@pytest.mark.parametrize(
    "box",
    [
        (NAN, 0, 5, 5),
        (0, 0, NAN, NAN),
        (0, 0, INF, 5),
        (-INF, -INF, INF, INF),
        (INF, INF, INF, INF),
    ],
)
def test_boxes_that_are_not_finite_give_zeros(
    box: tuple[float, ...], sampling_ratio: int, memory_format: str
) -> None:
    feature = torch.ones(1, 4, 9, 9).clone(memory_format=FORMATS[memory_format]).requires_grad_()
    rois = torch.tensor([(0.0, *box), (0.0, 1, 1, 6, 6)])
    pooled = ops.roi_align(feature, rois, 3, 1.0, sampling_ratio)
    assert torch.equal(pooled[0], torch.zeros(4, 3, 3))
    assert torch.equal(pooled[1], torch.ones(4, 3, 3))
    pooled.sum().backward()
    assert feature.grad.isfinite().all()


def test_huge_box_is_sampled_where_the_map_is() -> None:
    # 10^14 samples, of which 81 lie on the map: in the bin in the middle.
    side = 3e7
    rois = torch.tensor([[0, -side, -side, side, side]], dtype=torch.float64)
    pooled = ops.roi_align(torch.ones(1, 1, 9, 9, dtype=torch.float64), rois, 3, 1.0, -1)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[1, 1] = 10**2 / ((2**22) ** 2)
    assert torch.equal(pooled[0, 0] > 0, expected > 0)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_boxes_inside_out_and_outside_are_torchvisions(sampling_ratio: int, aligned: bool) -> None:
    feature = torch.randn(1, 3, 20, 20)
    boxes = [(10, 10, 2, 2), (5, 5, 5, 5), (-50, -50, -30, -30), (30, 30, 50, 50), (-9, 3, 4, 40)]
    rois = torch.tensor([(0.0, *box) for box in boxes])
    expected = torchvision.ops.roi_align(feature, rois, 5, 1.0, sampling_ratio, aligned)
    assert torch.equal(ops.roi_align(feature, rois, 5, 1.0, sampling_ratio, aligned), expected)


@pytest.mark.parametrize(
    "boxes, shape", [(torch.zeros(1, 4), "1, 4"), ([torch.zeros(1, 3)], "1, 3")]
)
def test_boxes_of_another_shape_fail_as_in_torchvision(
    boxes: torch.Tensor | list[torch.Tensor], shape: str
) -> None:
    message = rf"boxes must be \[R, 5\], or a list of \[R_n, 4\], not \[{shape}\]"
    with pytest.raises(AssertionError, match=message):
        ops.roi_align(torch.zeros(1, 1, 8, 8), boxes, 2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rois": torch.tensor([[2.0, 0, 0, 5, 5]])}, r"rois\[0\] has batch index 2.* 2 images"),
        ({"rois": torch.tensor([[-1.0, 0, 0, 5, 5]])}, r"rois\[0\] has batch index -1"),
        ({"rois": torch.tensor([[NAN, 0, 0, 5, 5]])}, r"rois\[0\] has batch index nan"),
        ({"rois": torch.zeros(1, 4)}, r"rois must be \[R, 5\], not \[1, 4\]"),
        ({"levels": torch.tensor([3])}, r"levels\[0\] is 3, but there are 3 levels"),
        ({"levels": torch.zeros(2, dtype=torch.int64)}, r"levels must be \[1\]"),
        ({"levels": torch.zeros(1)}, "levels must be Long, not Float"),
        ({"scales": [1.0]}, "features has 3 levels, but scales has 1"),
        ({"features": [torch.zeros(2, 3, 9)] * 3}, r"features\[0\] must be \[N, F, H, W\]"),
        ({"features": [*pyramid()[:2], torch.zeros(2, 4, 9, 9)]}, "N and F must agree"),
        ({"features": [*pyramid()[:2], pyramid()[2].double()]}, r"features\[2\] is Double"),
        ({"features": [*pyramid()[:2], torch.zeros(2, 19, 0, 9)]}, r"features\[2\] has no pixels"),
        ({"features": [f.int() for f in pyramid()]}, "features must be float32 or float64"),
        ({"output_size": 0}, "output_size must be positive"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    arguments = {
        "features": pyramid(),
        "rois": torch.tensor([[0.0, 0, 0, 5, 5]]),
        "levels": torch.zeros(1, dtype=torch.int64),
        "scales": SCALES,
        "output_size": 7,
    }
    with pytest.raises(RuntimeError, match=message) as error:
        ops.multiscale_roi_align(**{**arguments, **change})
    assert "\n" not in str(error.value)
