"""3x3 convolution by Winograd's algorithm: the same sums with fewer multiplications.

Shapes: see ``structures``; here ``F`` input channels, and ``H, W`` is the size of the map. The
algorithm is explained in ``reference/conv3x3.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.ops import reference
from maskrcnn_scratch.ops._library import NAMESPACE, compiled, kernels
from maskrcnn_scratch.ops.reference.conv3x3 import PANEL, POINTS, transform_weight

IN_CHANNELS_MULTIPLE = 16
OUT_CHANNELS_MULTIPLE = PANEL


def conv3x3(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False
) -> Tensor:
    """``F.conv2d`` of a 3x3 filter with stride 1, padding 1, dilation 1 and one group, in float32.

    A multiplication of F(2x2, 3x3) serves 2.25 of the direct sum, and one of F(4x4, 3x3) serves 4.
    Products are added up in chains of 64 channels. Of standard normal inputs with 256 channels, the
    relative error (L2, against float64) is 3e-7 with m = 2 and 7e-7 with m = 4, measured on the
    CPU; ``F.conv2d`` has between 2e-7 and 6e-7, depending on the CPU and the memory format.

    An output is computed from its whole tile of ``m x m`` outputs, with their ``(m + 2) x (m + 2)``
    inputs: NaN or infinity in an input makes all outputs of the tiles that read it NaN or infinite.

    The CPU has a kernel: it reads channels-last input fastest, and its result is the same for every
    number of threads and independent of the other images of the batch. It has the same bits with
    AVX2 and AVX-512. Elsewhere the reference implementation runs.

    There is no gradient.

    Args:
        input: float32 ``[N, F, H, W]``; ``F`` is a multiple of 16.
        weight: what ``transform_conv3x3_weight`` returns; ``O`` is a multiple of 32.
        bias: float32 ``[O]``, or None for zeros.
        relu: whether negative outputs become 0.

    Returns:
        float32 ``[N, O, H, W]``, channels-last; empty if the input is.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.
    """
    if bias is None:
        bias = weight.new_zeros(weight.shape[1] * PANEL)
    on_cpu = input.device.type == "cpu"
    return (kernels if on_cpu else reference).conv3x3(input, weight, bias, relu)


def conv3x3_weight_gradient(input: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the weight of the convolution that ``conv3x3`` computes, by F(2x2, 3x3).

    Products are added up in chains of 64 tiles, these within 2048 tiles, and then all. Of standard
    normal ``input`` and ``grad``, the relative error (L2, against float64) is 3e-7, measured on the
    CPU with 950 to 240,000 locations; PyTorch's has 2e-7 to 2e-6 and grows with their number.

    NaN or infinity in an input channel makes all filters that read it NaN or infinite, and in an
    output channel all of its filters.

    The CPU has a kernel: it reads channels-last maps fastest. Its result is the same for every
    number of threads, and has the same bits with AVX2 and AVX-512. Elsewhere the reference
    implementation runs. There is no gradient.

    Args:
        input: float32 ``[N, F, H, W]``; ``F`` is a multiple of 16.
        grad: gradient of the outputs, float32 ``[N, O, H, W]``; ``O`` is a multiple of 32.

    Returns:
        float32 ``[O, F, 3, 3]``, channels-last; zeros if the input is empty.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.
    """
    on_cpu = input.device.type == "cpu"
    return (kernels if on_cpu else reference).conv3x3_weight_gradient(input, grad)


def transform_conv3x3_weight(weight: Tensor, m: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The weight of a convolution in the form that ``conv3x3`` takes.

    Args:
        weight: ``[O, F, 3, 3]``; ``F`` is a multiple of 16 and ``O`` a multiple of 32.
        m: outputs of a tile along each axis, 2 or 4.
        dtype: to compute it in.

    Returns:
        ``[(m + 2)^2, O / 32, F, 32]`` in the weight's dtype: 1.8 or 4 times its size.

    Raises:
        ValueError: another ``m`` or another shape.
    """
    if m not in POINTS:
        raise ValueError(f"m must be 2 or 4, not {m}")
    if not can_conv3x3(weight):
        raise ValueError(
            f"weight must be [O, F, 3, 3] with F a multiple of {IN_CHANNELS_MULTIPLE} and O of "
            f"{OUT_CHANNELS_MULTIPLE}, not {list(weight.shape)}"
        )
    return transform_weight(weight, m, dtype)


def can_conv3x3(weight: Tensor) -> bool:
    """Whether ``weight [O, F, kh, kw]`` has a shape that ``conv3x3`` supports."""
    if weight.dim() != 4 or 0 in weight.shape:
        return False
    out_channels, in_channels, *size = weight.shape
    return (
        size == [3, 3]
        and in_channels % IN_CHANNELS_MULTIPLE == 0
        and out_channels % OUT_CHANNELS_MULTIPLE == 0
    )


def _fake(input: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    num_images, _, height, width = input.shape
    return input.new_empty((num_images, bias.shape[0], height, width)).contiguous(
        memory_format=torch.channels_last
    )


def _fake_weight_gradient(input: Tensor, grad: Tensor) -> Tensor:
    return input.new_empty((grad.shape[1], input.shape[1], 3, 3)).contiguous(
        memory_format=torch.channels_last
    )


if compiled:
    for _op, _fake_op in (("conv3x3", _fake), ("conv3x3_weight_gradient", _fake_weight_gradient)):
        torch.library.register_fake(f"{NAMESPACE}::{_op}", _fake_op)
        for _device in ("cpu", "cuda"):
            torch.library.register_autocast(f"{NAMESPACE}::{_op}", _device, torch.float32)
