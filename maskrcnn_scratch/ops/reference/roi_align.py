"""RoIAlign, step by step: place the samples, look up four pixels each, blend, average."""

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
    """``L`` maps ``[N, C, H_l, W_l]``, ``[K, 5]``, ``[K]`` -> ``[K, C, P, P]``."""
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
    """``[K, C, P, P]`` -> for each level ``[N, C, H_l, W_l]``."""
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
    """One level: ``[N, C, H, W]``, ``[K, 5]`` -> ``[K, C, P, P]``."""
    height, width = feature.shape[2:]
    image = rois[:, 0].long()  # [K]
    y, y_count = _samples(rois[:, 2], rois[:, 4], scale, pooled_height, sampling_ratio, aligned)
    x, x_count = _samples(rois[:, 1], rois[:, 3], scale, pooled_width, sampling_ratio, aligned)

    pixels = feature.permute(0, 2, 3, 1)  # [N, H, W, C]
    sample: Tensor | float = 0.0
    for row, row_weight in _neighbours(y, height):  # [K, P * S]
        for column, column_weight in _neighbours(x, width):
            value = pixels[image[:, None, None], row[:, :, None], column[:, None, :]]
            weight = row_weight[:, :, None] * column_weight[:, None, :]
            sample = sample + weight[..., None] * value  # [K, P * S, P * S, C]
    assert isinstance(sample, Tensor)

    bins = sample.unflatten(2, (pooled_width, -1)).unflatten(1, (pooled_height, -1))
    total = bins.sum((2, 4))  # [K, P, S, P, S, C] -> [K, P, P, C]
    count = (y_count * x_count).clamp(min=1)  # [K]
    return (total / count[:, None, None, None]).permute(0, 3, 1, 2).to(feature.dtype)


def _samples(
    low: Tensor, high: Tensor, scale: float, pooled: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Positions ``[K, P * S]`` (NaN where a RoI has fewer) and samples in a bin ``[K]``."""
    offset = 0.5 if aligned else 0.0
    start = low * scale - offset  # [K]
    length = high * scale - offset - start
    if not aligned:
        length = length.clamp(min=1)
    size = length / pooled  # of a bin
    if sampling_ratio > 0:
        count = torch.full_like(size, sampling_ratio)
    else:
        count = size.ceil().clamp(min=0).nan_to_num(0)
    most = sampling_ratio if sampling_ratio > 0 else max([1, *count.int().tolist()])

    index = torch.arange(most, device=low.device)  # [S]
    step = (index + 0.5) * size[:, None] / count[:, None]  # [K, S]
    bins = torch.arange(pooled, device=low.device) * size[:, None]  # [K, P]
    position = start[:, None, None] + bins[:, :, None] + step[:, None, :]  # [K, P, S]
    position = position.where((index < count[:, None])[:, None, :], torch.nan)
    return position.flatten(1), count


def _neighbours(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two pixels around each position and their weights; zero beyond one pixel outside."""
    inside = (position >= -1) & (position <= size)  # NaN is outside
    position = position.where(inside, 0).clamp(0, size - 1)
    low = position.long()
    high = (low + 1).clamp(max=size - 1)
    fraction = position - low
    return [(low, (1 - fraction) * inside), (high, fraction * inside)]
