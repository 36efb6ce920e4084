"""Answers of chapter 13: Winograd's convolution."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn
from tour_answers.shared import resnet50
from tour_helpers import winograd_error

from maskrcnn_scratch.winograd import reason_to_keep


def answer_13a() -> None:
    """Errors of other points."""
    for a, b in (("1", "2"), ("1/2", "2"), ("1", "1/2"), ("5/8", "3/2"), ("3/4", "9/8")):
        pairs = (sign * Fraction(point) for point in (a, b) for sign in (1, -1))
        error = winograd_error((Fraction(0), *pairs))
        print(f"0, +-{a:3}, +-{b:3}, infinity: {error:.1e}")
    print("Powers of a point far from 1 are very large or very small; points close together need")
    print("large factors.")


@torch.no_grad()
def answer_13b() -> None:
    """Multiplications of the large model."""
    big = resnet50()
    layers = [m for m in big.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
    saved = {m for m in layers if isinstance(m, nn.Conv2d) and reason_to_keep(m) is None}
    products: dict[str, float] = {}

    def add(name: str, count: float) -> None:
        products[name] = products.get(name, 0) + count

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        direct = output.numel() * weight.numel() / output.shape[1]
        if isinstance(layer, nn.ConvTranspose2d):
            direct /= layer.stride[0] ** 2  # its filters do not overlap
        add("direct sums", direct)
        add("of them in 3x3 convolutions of stride 1", direct * (layer in saved))
        for m in (2, 4):
            if layer in saved:
                rows, columns = (-(-size // m) for size in output.shape[2:])
                direct = len(output) * rows * columns * (m + 2) ** 2 * weight[:, :, 0, 0].numel()
            add(f"with F({m}x{m}, 3x3)", direct)

    for layer in layers:
        layer.register_forward_hook(count)
    batch, _ = big.transform([torch.rand(3, 800, 1200)])
    features = big.extract_features(batch.tensors)
    big.rpn.head(list(features.values()))
    big.roi_heads.box_predictor(big.roi_heads.box_head(torch.zeros(1000, 256, 7, 7)))
    big.roi_heads.mask_predictor(big.roi_heads.mask_head(torch.zeros(100, 256, 14, 14)))
    for name, number in products.items():
        print(f"{name}: {number / 1e9:.0f} G")
