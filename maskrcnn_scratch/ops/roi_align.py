"""RoIAlign (Mask R-CNN, Section 3): fixed-size features of boxes, by bilinear sampling.

Letters: ``N`` images, ``K`` RoIs, ``C`` channels, ``L`` levels, ``P`` pooled side. A RoI is
``(batch index, x1, y1, x2, y2)`` in the pixels of the image that the features were computed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.ops._library import NAMESPACE, compiled, kernels
from maskrcnn_scratch.structures import list_to_rois


def multiscale_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: int | tuple[int, int],
    sampling_ratio: int = -1,
    aligned: bool = False,
    channels_last: bool = False,
) -> Tensor:
    """RoIAlign of RoIs that each have their own feature map, all in one call.

    Each RoI is cut into ``output_size`` bins; a bin is the mean of its samples, a sample is
    interpolated bilinearly from four pixels. Samples more than one pixel outside the map are zero.

    Channels-last features are read fastest. There is no gradient to ``rois``. The backward pass is
    deterministic on the CPU, and elsewhere if ``torch.use_deterministic_algorithms`` asks for it.

    Args:
        features: ``L`` maps ``[N, C, H_l, W_l]`` of one dtype.
        rois: ``[K, 5]``; computed with in float32 (float64 for float64 features).
        levels: int64 ``[K]``, which map each RoI is read from.
        scales: ``L`` factors from image pixels to the maps' pixels.
        output_size: bins as ``(height, width)``, or one number for both.
        sampling_ratio: samples along each side of a bin; below 1, one for each pixel, rounded up.
        aligned: shift by half a pixel, so that pixel centres match; without it (as in
            torchvision's models) a RoI is also at least one pixel long.
        channels_last: the memory format of the result: contiguous suits a linear layer on the
            flattened features, channels-last a convolution.

    Returns:
        ``[K, C, P, P]`` in the features' dtype, summed in float32 (float64 for float64). With
        float32 features on the CPU, the bits are those of ``torchvision.ops.roi_align``. RoIs with
        NaN or infinite sides give zeros.

    Raises:
        RuntimeError: shapes that do not fit; on the CPU also a level or batch index out of range.
    """
    if isinstance(output_size, int):
        output_size = (output_size, output_size)
    rois = rois.to(torch.float64 if features[0].dtype == torch.float64 else torch.float32)
    return kernels.multiscale_roi_align(
        list(features), rois, levels, list(scales), *output_size, sampling_ratio, aligned,
        channels_last,
    )  # fmt: skip


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign on one feature map, with the signature of ``torchvision.ops.roi_align``.

    Args:
        input: ``[N, C, H, W]``.
        boxes: ``[K, 5]`` with the batch index first, or for each image its boxes ``[K_n, 4]``.
        output_size: bins as ``(height, width)``, or one number for both.
        spatial_scale: factor from the boxes' pixels to the map's.
        sampling_ratio: see :func:`multiscale_roi_align`.
        aligned: see :func:`multiscale_roi_align`.

    Returns:
        ``[K, C, P, P]``.
    """
    rois = boxes if isinstance(boxes, Tensor) else list_to_rois(boxes)
    levels = torch.zeros(rois.shape[0], dtype=torch.int64, device=rois.device)
    return multiscale_roi_align(
        [input], rois, levels, [spatial_scale], output_size, sampling_ratio, aligned
    )


def _is_channels_last(feature: Tensor) -> bool:
    return feature.shape[1] > 1 and feature.stride(1) == 1


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, levels, scales, _, _, sampling_ratio, aligned, _ = inputs
    ctx.save_for_backward(rois, levels)
    ctx.scales, ctx.sampling_ratio, ctx.aligned = scales, sampling_ratio, aligned
    ctx.sizes = [feature.shape for feature in features]
    ctx.channels_last = _is_channels_last(features[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grads = kernels.multiscale_roi_align_backward(
        grad,
        *ctx.saved_tensors,
        ctx.scales,
        [size[2] for size in ctx.sizes],
        [size[3] for size in ctx.sizes],
        ctx.sizes[0][0],
        ctx.sampling_ratio,
        ctx.aligned,
        ctx.channels_last,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grads, *[None] * 8


def _fake(
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: list[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
) -> Tensor:
    return torch.empty(
        (rois.shape[0], features[0].shape[1], pooled_height, pooled_width),
        dtype=features[0].dtype,
        device=features[0].device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _fake_backward(
    grad: Tensor,
    rois: Tensor,
    levels: Tensor,
    scales: list[float],
    heights: list[int],
    widths: list[int],
    batch_size: int,
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
    deterministic: bool,
) -> list[Tensor]:
    return [
        torch.empty(
            (batch_size, grad.shape[1], height, width),
            dtype=grad.dtype,
            device=grad.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        for height, width in zip(heights, widths, strict=True)
    ]


if compiled:
    torch.library.register_fake(f"{NAMESPACE}::multiscale_roi_align", _fake)
    torch.library.register_fake(f"{NAMESPACE}::multiscale_roi_align_backward", _fake_backward)
    torch.library.register_autograd(
        f"{NAMESPACE}::multiscale_roi_align", _backward, setup_context=_setup_context
    )
