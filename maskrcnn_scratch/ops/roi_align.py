"""RoIAlign (Mask R-CNN, Section 3): features of fixed size for each RoI, by bilinear sampling.

Shapes: see ``structures``. A RoI is ``(image index, x1, y1, x2, y2)``, in pixels of the image that
the features were computed from. Step by step in ``reference/roi_align.py``.

RoIAlign is linear in the features. So its backward pass is linear in the incoming gradient, the
backward pass of the backward pass is RoIAlign again, and in forward mode each tangent goes through
the same operator as its value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

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
    """RoIAlign of RoIs that are read from different levels of a feature pyramid, in one call.

    Each RoI is divided into ``output_size`` bins. A bin is the mean of its samples, and a sample is
    interpolated from four pixels. Samples more than one pixel outside the map are zero.

    Differentiable in ``features``, to any order, and in forward mode. ``rois`` get no gradient, as
    in torchvision. The backward pass is deterministic on the CPU; on other devices it is where
    ``torch.use_deterministic_algorithms`` asks for it.

    Args:
        features: ``L`` maps ``[N, F, H_l, W_l]`` of one dtype, channels-last or contiguous.
        rois: ``[R, 5]``, computed with in float32 (float64 for float64 features).
        levels: int64 ``[R]``, the map that each RoI is read from.
        scales: ``L`` factors from image pixels to the pixels of the maps.
        output_size: number of bins as ``(height, width)``, or one number for both.
        sampling_ratio: samples per bin along each axis; below 1, about one per pixel of the map.
        aligned: shift RoIs by half a pixel, so that pixel centres match. Without it (as in
            torchvision's models) a RoI is at least one pixel long.
        channels_last: memory format of the result: False suits a linear layer on the flattened
            features, True a convolution.

    Returns:
        ``[R, F, S, S]`` in the dtype of the features, summed in float32 (float64 for float64). On
        the CPU, float32 results are bit-equal to ``torchvision.ops.roi_align``. RoIs with NaN or
        infinite sides give zeros.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; on the CPU also a level or a batch index out
            of range.
    """
    if isinstance(output_size, int):
        output_size = (output_size, output_size)
    rois = rois.to(torch.float64 if features[0].dtype == torch.float64 else torch.float32)
    return _pool(
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
        input: ``[N, F, H, W]``.
        boxes: RoIs ``[R, 5]``, or a list with the boxes of each image, ``[R_n, 4]``.
        output_size: number of bins as ``(height, width)``, or one number for both.
        spatial_scale: factor from image pixels to the pixels of ``input``.
        sampling_ratio: see :func:`multiscale_roi_align`.
        aligned: see :func:`multiscale_roi_align`.

    Returns:
        ``[R, F, S, S]``.

    Raises:
        AssertionError: boxes of another shape, as in torchvision.
        RuntimeError: see :func:`multiscale_roi_align`.
    """
    given, columns = ([boxes], 5) if isinstance(boxes, Tensor) else (list(boxes), 4)
    for each in given:
        if each.dim() != 2 or each.shape[1] != columns:
            raise AssertionError(
                f"boxes must be [R, 5], or a list of [R_n, 4], not {list(each.shape)}"
            )
    rois = boxes if isinstance(boxes, Tensor) else list_to_rois(boxes)
    levels = torch.zeros(rois.shape[0], dtype=torch.int64, device=rois.device)
    return multiscale_roi_align(
        [input], rois, levels, [spatial_scale], output_size, sampling_ratio, aligned
    )


def _pool(features: list[Tensor], *arguments: Any) -> Tensor:
    """The operator, in forward mode too."""

    def pool(*features: Tensor) -> list[Tensor]:
        return [kernels.multiscale_roi_align(list(features), *arguments)]

    return _with_tangents(pool, features)[0]


def _spread(grad: Tensor, *arguments: Any) -> list[Tensor]:
    """The backward pass: gradients of the features from that of the result, in forward mode too."""

    def spread(grad: Tensor) -> list[Tensor]:
        return kernels.multiscale_roi_align_backward(grad, *arguments)

    return _with_tangents(spread, [grad])


def _with_tangents(linear: Callable[..., list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    """``linear(*inputs)``, where dual inputs give dual results; torch.library cannot register it.

    Args:
        linear: a function that is linear in all inputs together.
        inputs: tensors, of which any may have a tangent (``torch.autograd.forward_ad``).
    """
    if torch.compiler.is_compiling():
        return linear(*inputs)
    duals = [forward_ad.unpack_dual(tensor) for tensor in inputs]
    if all(dual.tangent is None for dual in duals):
        return linear(*inputs)
    values = linear(*[dual.primal for dual in duals])
    tangents = linear(
        *[torch.zeros_like(dual.primal) if dual.tangent is None else dual.tangent for dual in duals]
    )
    return [forward_ad.make_dual(*pair) for pair in zip(values, tangents, strict=True)]


def _is_channels_last(feature: Tensor) -> bool:
    return feature.shape[1] > 1 and feature.stride(1) == 1


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, levels, scales, _, _, sampling_ratio, aligned, _ = inputs
    ctx.save_for_backward(rois, levels)
    ctx.scales, ctx.sampling_ratio, ctx.aligned = scales, sampling_ratio, aligned
    ctx.sizes = [feature.shape for feature in features]
    ctx.channels_last = _is_channels_last(features[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grads = _spread(
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


def _setup_double_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, rois, levels, scales, _, _, _, sampling_ratio, aligned, _, _ = inputs
    ctx.save_for_backward(rois, levels)
    ctx.scales, ctx.sampling_ratio, ctx.aligned = scales, sampling_ratio, aligned
    ctx.pooled_size = grad.shape[2:]
    ctx.channels_last = _is_channels_last(grad)


def _double_backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    """From the gradients of the maps' gradients, ``[N, F, H_l, W_l]``, to that of ``grad``."""
    grad = _pool(
        grads,
        *ctx.saved_tensors,
        ctx.scales,
        *ctx.pooled_size,
        ctx.sampling_ratio,
        ctx.aligned,
        ctx.channels_last,
    )
    return grad, *[None] * 10


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
    torch.library.register_autograd(
        f"{NAMESPACE}::multiscale_roi_align_backward",
        _double_backward,
        setup_context=_setup_double_context,
    )
