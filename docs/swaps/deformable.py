"""Deformable convolutions v2 (Zhu et al. 2019, "Deformable ConvNets v2", section 3).

Each location chooses where its kernel samples, and how much each sample weighs. They replace the
3x3 convolutions of the last stages of the backbone. Needs ``pip install torchvision``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.structures import at_least_float32


class DeformableConv2d(nn.Module):
    """In place of ``conv``, a 3x3 convolution whose weights it takes over.

    Offsets start at 0 and modulations at 1, so that it first computes what ``conv`` does. (The
    paper starts the modulations at 0.5.)
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        samples = conv.kernel_size[0] * conv.kernel_size[1]
        # Two offsets and a modulation for each sample of the kernel.
        self.offset = nn.Conv2d(
            conv.in_channels, 3 * samples, conv.kernel_size, conv.stride, conv.padding
        )
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        *offsets, modulation = self.offset(x).chunk(3, dim=1)
        given = x, torch.cat(offsets, dim=1), self.conv.weight, 2 * modulation.sigmoid()
        # torchvision has no kernel for half types on the CPU.
        full, where, weight, mask = (at_least_float32(tensor) for tensor in given)
        conv = self.conv
        return deform_conv2d(
            full, where, weight, conv.bias, conv.stride, conv.padding, conv.dilation, mask
        ).to(x.dtype)


def make_deformable(module: nn.Module) -> None:
    """Replaces the 3x3 convolutions inside ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
            setattr(module, name, DeformableConv2d(child))
        else:
            make_deformable(child)


def build(num_classes: int, **options: Any) -> MaskRCNN:
    model = small_maskrcnn(num_classes, **options)
    for stage in ("layer3", "layer4"):
        make_deformable(model.backbone.body[stage])
    return model
