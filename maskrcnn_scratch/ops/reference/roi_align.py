"""RoIAlign, step by step: sample positions, four pixels for each, interpolation, mean.

Shapes: see ``structures``; here ``T`` samples per bin along an axis.
"""

from __future__ import annotations

import torch
from torch import Tensor


def multiscale_roi_align(
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
    """``L`` maps ``[N, F, H_l, W_l]``, ``[R, 5]``, ``[R]`` -> ``[R, F, S, S]``."""
    output = features[0].new_zeros(
        (rois.shape[0], features[0].shape[1], pooled_height, pooled_width)
    )
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        chosen = (levels == level).nonzero().squeeze(1)
        pooled = _roi_align(
            feature, rois[chosen], scale, pooled_height, pooled_width, sampling_ratio, aligned
        )
        output = output.index_copy(0, chosen, pooled)
    return output.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def multiscale_roi_align_backward(
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
    """``[R, F, S, S]`` -> for each level ``[N, F, H_l, W_l]``."""
    with torch.enable_grad():
        features = [
            grad.new_zeros((batch_size, grad.shape[1], height, width), requires_grad=True)
            for height, width in zip(heights, widths, strict=True)
        ]
        pooled_height, pooled_width = grad.shape[2:]
        output = multiscale_roi_align(
            features,
            rois,
            levels,
            scales,
            pooled_height,
            pooled_width,
            sampling_ratio,
            aligned,
            channels_last,
        )
    return list(torch.autograd.grad(output, features, grad))


def _roi_align(
    feature: Tensor,
    rois: Tensor,
    scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """One level: ``[N, F, H, W]``, ``[R, 5]`` -> ``[R, F, S, S]``."""
    height, width = feature.shape[2:]
    image = rois[:, 0].long()  # [R]
    y, y_count = _samples(rois[:, 2], rois[:, 4], scale, pooled_height, sampling_ratio, aligned)
    x, x_count = _samples(rois[:, 1], rois[:, 3], scale, pooled_width, sampling_ratio, aligned)

    pixels = feature.permute(0, 2, 3, 1)  # [N, H, W, F]
    sample: Tensor | float = 0.0
    for row, row_weight in _neighbours(y, height):  # [R, S * T]
        for column, column_weight in _neighbours(x, width):
            value = pixels[image[:, None, None], row[:, :, None], column[:, None, :]]
            weight = row_weight[:, :, None] * column_weight[:, None, :]
            sample = sample + weight[..., None] * value  # [R, S * T, S * T, F]
    assert isinstance(sample, Tensor)

    bins = sample.unflatten(2, (pooled_width, -1)).unflatten(1, (pooled_height, -1))
    total = bins.sum((2, 4))  # [R, S, T, S, T, F] -> [R, S, S, F]
    count = (y_count * x_count).clamp(min=1)  # [R]
    return (total / count[:, None, None, None]).permute(0, 3, 1, 2).to(feature.dtype)


def _samples(
    low: Tensor, high: Tensor, scale: float, pooled: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Positions ``[R, S * T]``, NaN where a RoI has fewer samples, and samples per bin ``[R]``."""
    offset = 0.5 if aligned else 0.0
    start = low * scale - offset  # [R]
    length = high * scale - offset - start
    if not aligned:
        length = length.clamp(min=1)
    size = length / pooled  # of a bin
    if sampling_ratio > 0:
        count = torch.full_like(size, sampling_ratio)
    else:
        count = size.ceil().clamp(min=0).nan_to_num(0)
    most = sampling_ratio if sampling_ratio > 0 else max([1, *count.int().tolist()])

    index = torch.arange(most, device=low.device)  # [T]
    step = (index + 0.5) * size[:, None] / count[:, None]  # [R, T]
    bins = torch.arange(pooled, device=low.device) * size[:, None]  # [R, S]
    position = start[:, None, None] + bins[:, :, None] + step[:, None, :]  # [R, S, T]
    position = position.where((index < count[:, None])[:, None, :], torch.nan)
    return position.flatten(1), count


def _neighbours(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two pixels around each position and their weights; 0 a pixel or more outside the map."""
    inside = (position >= -1) & (position <= size)  # NaN is outside
    position = position.where(inside, 0).clamp(0, size - 1)
    low = position.long()
    high = (low + 1).clamp(max=size - 1)
    fraction = position - low
    return [(low, (1 - fraction) * inside), (high, fraction * inside)]
