"""``torch.ops.maskrcnn_scratch`` called directly: bad arguments raise.

The wrappers in ``ops`` pass arguments that fit. ``torch.ops`` can be called with any, and nothing
may then be read or written out of bounds (under AddressSanitizer this test shows it).
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_scratch.ops import reference

OPS = torch.ops.maskrcnn_scratch
HUGE = 2**62


def arguments_of(name: str) -> dict[str, Any]:
    """Arguments that fit: 3 RoIs, boxes or masks."""
    rois = torch.tensor([[0.0, 0, 0, 5, 5], [1, 1, 1, 6, 6], [0, 2, 2, 9, 9]])
    levels = torch.tensor([0, 1, 0])
    return {
        "conv3x3": {
            "input": torch.randn(1, 16, 5, 6),
            "weight": torch.randn(16, 1, 16, 32),
            "bias": torch.randn(32),
            "relu": False,
        },
        "conv3x3_weight_gradient": {
            "input": torch.randn(1, 16, 5, 6),
            "grad": torch.randn(1, 32, 5, 6),
        },
        "decode_boxes": {
            "deltas": torch.randn(2, 5, 4),
            "delta_indices": torch.tensor([[4, 0, 2], [1, 1, 3]]),
            "references": rois[None, :, 1:].contiguous(),
            "reference_indices": torch.tensor([[2, 1, 0], [0, 0, 1]]),
            "image_sizes": torch.tensor([[9, 9], [8, 7]]),
            "weights": [10.0, 10.0, 5.0, 5.0],
            "bbox_xform_clip": 4.0,
            "min_size": 1.0,
        },
        "fpn_levels": {
            "boxes": rois[:, 1:].contiguous(),
            "finest": 2,
            "coarsest": 5,
            "canonical_scale": 224.0,
            "canonical_level": 4.0,
            "epsilon": 1e-6,
        },
        "multiscale_roi_align": {
            "features": [torch.randn(2, 4, 9, 9), torch.randn(2, 4, 5, 5)],
            "rois": rois,
            "levels": levels,
            "scales": [1.0, 0.5],
            "pooled_height": 2,
            "pooled_width": 3,
            "sampling_ratio": 2,
            "aligned": False,
            "channels_last": False,
        },
        "multiscale_roi_align_backward": {
            "grad": torch.randn(3, 4, 2, 3),
            "rois": rois,
            "levels": levels,
            "scales": [1.0, 0.5],
            "heights": [9, 5],
            "widths": [9, 5],
            "batch_size": 2,
            "sampling_ratio": 2,
            "aligned": False,
            "channels_last": False,
            "deterministic": False,
        },
        "nms_padded": {
            "boxes": rois[None, :, 1:].contiguous(),
            "scores": torch.rand(1, 3),
            "groups": levels[None],
            "iou_threshold": 0.5,
            "max_out": 3,
            "num_groups": 2,
            "offset_limit": 0,
        },
        "paste_masks": {
            "masks": torch.rand(3, 1, 5, 5),
            "boxes": rois[:, 1:].contiguous(),
            "height": 12,
            "width": 10,
        },
        "paste_masks_packed": {
            "masks": torch.rand(3, 1, 5, 5),
            "boxes": rois[:, 1:].contiguous(),
            "height": 12,
            "width": 10,
            "threshold": 0.5,
        },
        "max_iou": {
            "gt_boxes": torch.rand(2, 4),
            "boxes": torch.rand(3, 4),
            "find_low_quality_matches": True,
        },
        "rle_area": {"counts": "64", "height": 2, "width": 5},
        "rle_bounding_box": {"counts": "64", "height": 2, "width": 5},
        "rle_decode": {"counts": "64", "zeros": torch.zeros(2, 5, dtype=torch.uint8)},
        "rle_encode": {"mask": torch.ones(2, 5, dtype=torch.uint8)},
        "rle_from_counts": {"counts": torch.tensor([6, 4]), "height": 2, "width": 5},
        "rle_from_packed": {
            "masks": torch.ones(2, 5, 1, dtype=torch.int64),
            "height": 2,
            "width": 5,
            "num_threads": 2,
        },
        "rle_from_polygon": {"xy": torch.rand(8).double(), "height": 2, "width": 5},
        "rle_merge": {"counts": ["64", "64"], "height": 2, "width": 5, "intersect": True},
        "rle_paste": {
            "masks": torch.rand(3, 5, 5),
            "boxes": rois[:, 1:].contiguous(),
            "height": 12,
            "width": 10,
            "threshold": 0.5,
            "num_threads": 2,
        },
        "top_k_of_levels": {"values": torch.rand(2, 9), "level_sizes": [4, 5], "k": 3},
    }[name]


NAMES = [  # others run their reference implementation on the CPU
    name
    for name in reference.__all__
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"maskrcnn_scratch::{name}", "CPU")
]
BACKWARD = "multiscale_roi_align_backward"


@pytest.mark.parametrize("name", NAMES)
def test_arguments_that_fit_are_taken(name: str) -> None:
    getattr(OPS, name)(**arguments_of(name))


@pytest.mark.parametrize(
    "name, change, message",
    [
        (BACKWARD, {"grad": torch.randn(2, 4, 2, 3)}, "grad must have one row per RoI"),
        (BACKWARD, {"grad": torch.randn(4, 4, 2, 3)}, "grad must have one row per RoI"),
        (BACKWARD, {"grad": torch.randn(3, 4, 0, 3)}, "output_size must be positive"),
        (BACKWARD, {"grad": torch.randn(3, 4, 6)}, r"grad must be \[R, F, S, S\]"),
        (BACKWARD, {"grad": torch.randn(3, 4, 2, 3).double()}, "rois must be Double"),
        (BACKWARD, {"grad": torch.ones(3, 4, 2, 3, dtype=torch.int32)}, "grad must be float32"),
        (BACKWARD, {"heights": [0, 5]}, r"features\[0\] has no pixels"),
        (BACKWARD, {"widths": [9, 0]}, r"features\[1\] has no pixels"),
        (BACKWARD, {"heights": [-9, 5]}, "the height of a feature map must not be negative"),
        (BACKWARD, {"heights": [9]}, "must have one entry per level, they have 1, 2 and 2"),
        (BACKWARD, {"widths": [9, 5, 5]}, "must have one entry per level"),
        (BACKWARD, {"heights": [HUGE, 5]}, "the height of a feature map must be at most"),
        (
            BACKWARD,
            {"heights": [2**31 - 1, 5], "widths": [2**31 - 1, 5]},
            "the gradient of the features has too many elements",
        ),
        (BACKWARD, {"batch_size": -1}, "batch_size must not be negative"),
        (BACKWARD, {"batch_size": HUGE}, "the gradient of the features has too many elements"),
        (BACKWARD, {"batch_size": 1}, r"rois\[1\] has batch index 1"),
        (BACKWARD, {"levels": torch.tensor([0, 1])}, r"levels must be \[3\]"),
        (BACKWARD, {"levels": torch.tensor([0, 2, 0])}, r"levels\[1\] is 2"),
        (BACKWARD, {"rois": torch.zeros(3, 4)}, r"rois must be \[R, 5\]"),
        (BACKWARD, {"sampling_ratio": 2**40}, "sampling_ratio must be at most"),
        ("decode_boxes", {"deltas": torch.randn(2, 5, 5)}, r"deltas must be \[N, A, 4\]"),
        ("decode_boxes", {"deltas": torch.randn(2, 5)}, r"deltas must be \[N, A, 4\]"),
        (
            "decode_boxes",
            {"deltas": torch.randn(2, 4, 4)},
            r"delta_indices\[0, 0\] is 4, but there",
        ),
        ("decode_boxes", {"deltas": torch.randn(2, 5, 4).half()}, "references must be Half"),
        ("decode_boxes", {"references": torch.rand(3, 3, 4)}, r"references must be \[N, P, 4\] or"),
        ("decode_boxes", {"references": torch.rand(2, 2, 4)}, r"reference_indices\[0, 0\] is 2"),
        ("decode_boxes", {"references": torch.rand(1, 3, 4).double()}, "references must be Float"),
        ("decode_boxes", {"delta_indices": -torch.ones(2, 3).long()}, "delta_indices.* is -1"),
        ("decode_boxes", {"delta_indices": torch.ones(2, 3)}, "delta_indices must be Long"),
        (
            "decode_boxes",
            {"delta_indices": torch.ones(6).long()},
            r"delta_indices must be \[N, K\]",
        ),
        (
            "decode_boxes",
            {"reference_indices": torch.zeros(2, 2).long()},
            r"reference_indices must be \[2, 3\] as delta_indices is",
        ),
        ("decode_boxes", {"reference_indices": torch.ones(2, 3)}, "reference_indices must be Long"),
        ("decode_boxes", {"image_sizes": torch.ones(1, 2).long()}, r"image_sizes must be \[N, 2\]"),
        ("decode_boxes", {"image_sizes": torch.ones(2, 2)}, "image_sizes must be Long"),
        ("decode_boxes", {"weights": [1.0, 1.0]}, "weights must be 4 numbers, not 2"),
        ("multiscale_roi_align", {"pooled_height": 0}, "output_size must be positive"),
        ("multiscale_roi_align", {"pooled_width": -3}, "output_size must be positive"),
        ("multiscale_roi_align", {"pooled_height": HUGE}, "has more than 2147483647 bins"),
        ("multiscale_roi_align", {"pooled_height": 2**20, "pooled_width": 2**20}, "bins"),
        ("multiscale_roi_align", {"sampling_ratio": 2**32 + 2}, "sampling_ratio must be at most"),
        ("multiscale_roi_align", {"features": []}, "at least one level|no tensors|empty"),
        ("multiscale_roi_align", {"scales": []}, "features has 2 levels, but scales has 0"),
        ("multiscale_roi_align", {"rois": torch.zeros(())}, r"rois must be \[R, 5\]"),
        ("multiscale_roi_align", {"levels": torch.zeros(3)}, "levels must be Long"),
        (
            "multiscale_roi_align",
            {"features": [torch.zeros(1).expand(2, 4, 1, 2**31), torch.zeros(2, 4, 5, 5)]},
            "the width of a feature map must be at most",
        ),
        ("nms_padded", {"max_out": HUGE, "boxes": torch.zeros(4, 3, 4)}, "scores must be"),
        ("nms_padded", {"max_out": HUGE}, "indices has too many elements"),
        ("nms_padded", {"num_groups": 2**63 - 1}, r"num_groups must be in \[0, 2147483647\]"),
        ("nms_padded", {"num_groups": -1}, "num_groups must be in"),
        ("nms_padded", {"num_groups": 0}, r"groups\[0, 0\] is 0, but num_groups is 0"),
        ("nms_padded", {"offset_limit": -1}, "offset_limit must not be negative"),
        ("nms_padded", {"scores": torch.rand(1, 3).half()}, "scores must be Float"),
        (
            "nms_padded",
            {"groups": torch.zeros(1, 2, dtype=torch.int64)},
            r"groups must be \[N, K\]",
        ),
        ("paste_masks", {"height": HUGE}, "the height of the image must be at most"),
        ("paste_masks", {"height": 2**31 - 1, "width": 2**31 - 1}, "too many elements"),
        ("paste_masks", {"masks": torch.rand(3, 1, 0, 0)}, r"masks must be \[D, 1, M, M\]"),
        ("paste_masks", {"boxes": torch.rand(2, 4)}, r"boxes must be \[D, 4\]"),
        ("paste_masks_packed", {"height": 2**63 - 1}, "the height of the image must be at most"),
        ("paste_masks_packed", {"width": 2**31 - 1, "height": 2**31 - 1}, "too many elements"),
        ("paste_masks_packed", {"masks": torch.rand(3, 1, 5, 5).half()}, "masks must be float32"),
        ("max_iou", {"gt_boxes": torch.rand(0, 4)}, "gt_boxes must be"),
        ("max_iou", {"gt_boxes": torch.rand(2, 4).half()}, "gt_boxes must be Float"),
        ("max_iou", {"boxes": torch.rand(4)}, "boxes must be"),
        ("rle_decode", {"zeros": torch.zeros(2, 5)}, "zeros must be Byte"),
        ("rle_decode", {"zeros": torch.zeros(10).byte()}, r"zeros must be \[H, W\]"),
        ("rle_encode", {"mask": torch.ones(2, 5)}, "mask must be Byte"),
        ("rle_encode", {"mask": torch.ones(10).byte()}, r"mask must be \[H, W\]"),
        ("rle_from_counts", {"counts": torch.tensor([6.0, 4])}, "counts must be Long"),
        ("rle_from_packed", {"masks": torch.ones(2, 5, 1)}, "packed masks must be Long"),
        ("rle_from_polygon", {"xy": torch.rand(8)}, "xy must be Double"),
        ("rle_paste", {"masks": torch.rand(3, 5, 5).double()}, "masks must be Float"),
        ("rle_paste", {"boxes": torch.rand(3, 4).double()}, "boxes must be Float"),
        ("top_k_of_levels", {"level_sizes": [HUGE] * 4 + [9]}, "level_sizes add up to"),
        ("top_k_of_levels", {"level_sizes": [2**63 - 1, 2**63 - 1, 11]}, "level_sizes add up to"),
        ("top_k_of_levels", {"level_sizes": [4, 4]}, "level_sizes add up to 8"),
        ("top_k_of_levels", {"level_sizes": []}, "level_sizes add up to 0"),
        ("top_k_of_levels", {"values": torch.rand(2, 9).half()}, "values must be float32"),
    ],
)
def test_bad_arguments_raise(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as error:
        getattr(OPS, name)(**{**arguments_of(name), **change})
    assert "\n" not in str(error.value)


def test_an_image_without_rows_takes_no_memory_per_column() -> None:
    boxes = torch.tensor([[0.0, 0, 1e18, 1e18]])
    assert OPS.paste_masks(torch.ones(1, 1, 5, 5), boxes, 0, 2**31 - 1).numel() == 0


def test_no_channels_take_no_time_per_pixel() -> None:
    """Nor is a pointer computed into memory that there is none of, which UBSan reports."""
    arguments = arguments_of("multiscale_roi_align")
    arguments["features"] = [torch.zeros(2, 0, 40, 40), torch.zeros(2, 0, 5, 5)]
    assert OPS.multiscale_roi_align(**arguments).shape == (3, 0, 2, 3)
    backward = {**arguments_of(BACKWARD), "grad": torch.zeros(3, 0, 2, 3)}
    grads = OPS.multiscale_roi_align_backward(
        **{**backward, "heights": [2**28, 5], "widths": [2**28, 5]}
    )
    assert [grad.shape for grad in grads] == [(2, 0, 2**28, 2**28), (2, 0, 5, 5)]
    grads = OPS.multiscale_roi_align_backward(**{**backward, "batch_size": 2**50})
    assert [len(grad) for grad in grads] == [2**50, 2**50]


def test_an_image_without_columns() -> None:
    boxes = torch.tensor([[7.0, 0, 9, 9]])
    assert OPS.paste_masks(torch.ones(1, 1, 5, 5), boxes, 12, 0).shape == (1, 1, 12, 0)


def test_num_groups_is_a_bound_and_takes_no_memory() -> None:
    arguments = arguments_of("nms_padded")
    expected = OPS.nms_padded(**arguments)
    many = OPS.nms_padded(**{**arguments, "num_groups": 2**31 - 1})
    assert all(torch.equal(a, b) for a, b in zip(expected, many, strict=True))


NUMBERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**32 + 2, 2**63 - 1])
SIZES = st.integers(0, 4)
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.lists(SIZES | st.just(4) | st.just(5), max_size=5),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool]),
    st.sampled_from([0.0, 1.0, -1.0, 3.0, 1e30, float("nan"), float("inf")]),
)
TEXTS = st.text(alphabet=[chr(c) for c in range(47, 113)], max_size=9)
# No large image, for which a box may really be pasted.
SMALL = {"height", "width", "max_out", "heights", "widths", "pooled_height", "pooled_width"}


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_any_arguments_raise_or_give_a_result(data: st.DataObject, name: str) -> None:
    arguments = arguments_of(name)
    for key in data.draw(st.sets(st.sampled_from(sorted(arguments)), min_size=1, max_size=3)):
        value = arguments[key]
        numbers = st.integers(-3, 9) if key in SMALL else NUMBERS
        if isinstance(value, torch.Tensor):
            arguments[key] = data.draw(TENSORS)
        elif isinstance(value, bool):
            arguments[key] = not value
        elif isinstance(value, int):
            arguments[key] = data.draw(numbers if key != "batch_size" else st.integers(-3, 9))
        elif isinstance(value, float):
            arguments[key] = data.draw(st.floats())
        elif isinstance(value[0], torch.Tensor):
            arguments[key] = data.draw(st.lists(TENSORS, max_size=3))
        elif isinstance(value, str):
            arguments[key] = data.draw(TEXTS)
        elif isinstance(value[0], str):
            arguments[key] = data.draw(st.lists(TEXTS, max_size=3))
        elif isinstance(value[0], int):
            arguments[key] = data.draw(st.lists(numbers, max_size=3))
        else:
            arguments[key] = data.draw(st.lists(st.floats(), max_size=3))
    with contextlib.suppress(RuntimeError, ValueError):
        getattr(OPS, name)(**arguments)
