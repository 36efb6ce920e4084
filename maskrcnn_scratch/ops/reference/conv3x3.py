"""Winograd's convolution F(m x m, 3 x 3): fewer multiplications for the same 3x3 convolution.

Along one axis, the ``m`` outputs of a filter of 3 are computed from ``m + 2`` inputs with ``m + 2``
multiplications instead of ``3 m``:

    y = A^T [(G g) * (B^T d)]        g: filter [3], d: inputs [m + 2], y: outputs [m]

A correlation of two sequences is the transpose of a product of two polynomials, and such a product
of degree ``m + 1`` is known from its values at ``m + 2`` points: ``G`` evaluates one factor, ``*``
multiplies the values, and the other two matrices interpolate. In two dimensions all three act on
rows and on columns, which leaves ``(m + 2)^2`` multiplications for ``m^2`` outputs: 4 per output
for m = 2 and 2.25 for m = 4, where the direct sum takes 9.

Sources: Winograd, "Arithmetic Complexity of Computations" (1980); Lavin and Gray, "Fast Algorithms
for Convolutional Neural Networks", arXiv:1509.09308, Section 4; on the choice of points, Barabasz
et al., "Error Analysis and Improving the Accuracy of Winograd Convolution", arXiv:1803.10986.

Shapes: as in ``ops.conv3x3``; here ``t = m + 2`` inputs of a tile along an axis, and ``T_h, T_w``
tiles along the axes of the map.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

# Finite points of F(m x m, 3 x 3); infinity is the last one. For m = 4, these have half the error
# of the textbook's 0, 1, -1, 2, -2, and products of four of them are exact in float32.
POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
}
PANEL = 32  # output channels that lie side by side in transformed weights


def conv3x3(input: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """``[N, F, H, W]``, ``[t * t, O / 32, F, 32]`` -> ``[N, O, H, W]``, channels-last."""
    num_images, _, height, width = input.shape
    if input.numel() == 0:
        return input.new_empty((num_images, len(bias), height, width))
    m = outputs_per_axis(weight)
    a, _, b = (matrix.to(input) for matrix in matrices(m))
    values = _values_of_tiles(input, b, m, 1)  # [t * t, N * T_h * T_w, F]
    products = values @ weight.transpose(1, 2).flatten(2)  # [t * t, N * T_h * T_w, O]
    rows, columns = -(-height // m), -(-width // m)  # tiles along each axis
    products = products.reshape(m + 2, m + 2, num_images, rows, columns, -1)
    outputs = torch.einsum("ij,jknhwo,lk->nohiwl", a, products, a)  # [N, O, T_h, m, T_w, m]
    outputs = outputs.flatten(4).flatten(2, 3)[:, :, :height, :width] + bias[:, None, None]
    return (outputs.relu() if relu else outputs).contiguous(memory_format=torch.channels_last)


def conv3x3_weight_gradient(input: Tensor, grad: Tensor) -> Tensor:
    """``[N, F, H, W]``, ``[N, O, H, W]`` -> ``[O, F, 3, 3]``, channels-last.

    ``y = A^T [(G g) * (B^T d)]`` has the gradient ``G^T [(A dy) * (B^T d)]`` with respect to ``g``.
    The sum over all tiles is a matrix product per point.
    """
    out_channels, channels = grad.shape[1], input.shape[1]
    if input.numel() == 0:
        gradient = input.new_zeros((out_channels, channels, 3, 3))
        return gradient.contiguous(memory_format=torch.channels_last)
    a, g, b = (matrix.to(input) for matrix in matrices(2))
    values = _values_of_tiles(input, b, 2, 1)  # [t * t, N * T_h * T_w, F]
    grads = _values_of_tiles(grad, a.T, 2, 0)  # [t * t, N * T_h * T_w, O]
    sums = (grads.mT @ values).reshape(4, 4, out_channels, channels)
    gradient = torch.einsum("ji,jkoc,kl->ocil", g, sums, g)
    return gradient.contiguous(memory_format=torch.channels_last)


def _values_of_tiles(maps: Tensor, matrix: Tensor, m: int, padding: int) -> Tensor:
    """Tiles of ``maps [N, F, H, W]``, transformed on both axes: ``[t * t, N * T_h * T_w, F]``.

    Args:
        matrix: ``[t, m + 2 * padding]``.
        padding: zeros around the map. Tiles are ``m`` apart and overlap by ``2 * padding``.
    """
    height, width = maps.shape[2:]
    size = m + 2 * padding
    padded = F.pad(maps, (padding, padding + -width % m, padding, padding + -height % m))
    tiles = padded.unfold(2, size, m).unfold(3, size, m)  # [N, F, T_h, T_w, size, size]
    values = torch.einsum("ij,nchwjk,lk->ilnhwc", matrix, tiles, matrix)
    return values.flatten(2, 4).flatten(0, 1)


def transform_weight(weight: Tensor, m: int, dtype: torch.dtype) -> Tensor:
    """``[O, F, 3, 3]`` -> ``G g G^T`` of each filter, ``[t * t, O / 32, F, 32]``.

    It is computed in ``dtype``. Output channels lie side by side in panels of 32, in the order in
    which the kernel reads them.
    """
    _, g, _ = matrices(m)
    both_axes = torch.kron(g, g).to(weight.device, dtype)  # [t * t, 3 * 3]
    taps = weight.to(dtype).unflatten(0, (-1, PANEL)).permute(3, 4, 0, 2, 1)
    values = both_axes @ taps.reshape(9, -1)  # taps: [3, 3, O / 32, F, 32]
    return values.to(weight.dtype).reshape(-1, *taps.shape[2:])


def outputs_per_axis(weight: Tensor) -> int:
    """``m`` of a transformed weight."""
    return {16: 2, 36: 4}[weight.shape[0]]


def matrices(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """``A^T [m, t]``, ``G [t, 3]`` and ``B^T [t, t]`` in float64."""
    return matrices_of_points(POINTS[m])


@cache
def matrices_of_points(points: tuple[Fraction, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """``matrices`` for any ``m + 1`` finite points; infinity is the last point."""
    m = len(points) - 1
    a = [[point**i for point in points] + [Fraction(i == m - 1)] for i in range(m)]
    g, b = [], []
    for j, point in enumerate(points):
        others = points[:j] + points[j + 1 :]
        scale = _product_of_differences(point, others)
        g.append([point**i / scale for i in range(3)])
        b.append([*_polynomial(others), Fraction(0)])
    g.append([Fraction(0), Fraction(0), Fraction(1)])
    b.append(_polynomial(points))
    at, gt, bt = (
        torch.tensor([[float(entry) for entry in row] for row in matrix], dtype=torch.float64)
        for matrix in (a, g, b)
    )
    return at, gt, bt


def _product_of_differences(point: Fraction, others: tuple[Fraction, ...]) -> Fraction:
    product = Fraction(1)
    for other in others:
        product *= point - other
    return product


def _polynomial(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Coefficients of the monic polynomial with these roots, from x^0 upwards."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [
            high - root * low
            for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)
        ]
    return coefficients
