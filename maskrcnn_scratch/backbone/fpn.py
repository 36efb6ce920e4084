"""Feature Pyramid Network (Lin et al. 2017, "Feature Pyramid Networks for Object Detection").

The paths of C2-C5 to P2-P6::

    C5 --1x1------------> P5 --3x3--> "3" --subsample--> "pool" (P6)
                           | x2
    C4 --1x1-----(+)----> P4 --3x3--> "2"
                           | x2
    C3 --1x1-----(+)----> P3 --3x3--> "1"
                           | x2
    C2 --1x1-----(+)----> P2 --3x3--> "0"

Shapes: see ``structures``; ``F`` is 256 in all models here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch.conv import Conv2dNormActivation, accept_old_keys


class LastLevelMaxPool(nn.Module):
    """P6 is every second pixel of P5; only the RPN uses it, for the largest anchors (4.1)."""

    def forward(
        self, pyramid: list[Tensor], stages: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        coarser = pyramid[-1][..., ::2, ::2].clone()  # dense, as convolutions need it
        return [*pyramid, coarser], [*names, "pool"]


class LastLevelP6P7(nn.Module):
    """P6 and P7 by strided convolutions (RetinaNet, Lin et al. 2017, section 4).

    Args:
        in_channels: channels of C5; if equal to ``out_channels``, P6 is computed from P5 instead.
        out_channels: channels of the pyramid, ``F``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        self.use_P5 = in_channels == out_channels
        for conv in (self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(
        self, pyramid: list[Tensor], stages: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(pyramid[-1] if self.use_P5 else stages[-1])
        p7 = self.p7(F.relu(p6))
        return [*pyramid, p6, p7], [*names, "p6", "p7"]


class FeaturePyramidNetwork(nn.Module):
    """Feature maps with the same number of channels at every level, merged top-down (section 3).

    Args:
        in_channels_list: channels of each backbone stage, finest first.
        out_channels: channels of every level of the pyramid, ``F``.
        extra_blocks: adds coarser levels. It is called with the pyramid, the stages and their
            names, and returns the longer pyramid and its names.
        norm_layer: called with the number of channels; None for convolutions with a bias.
    """

    def __init__(
        self,
        in_channels_list: Sequence[int],
        out_channels: int,
        extra_blocks: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()

        def conv(in_channels: int, kernel_size: int) -> Conv2dNormActivation:
            return Conv2dNormActivation(
                in_channels, out_channels, kernel_size, norm_layer=norm_layer, activation=False
            )

        self.inner_blocks = nn.ModuleList(conv(channels, 1) for channels in in_channels_list)
        self.layer_blocks = nn.ModuleList(conv(out_channels, 3) for _ in in_channels_list)
        self.extra_blocks = extra_blocks
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        blocks = [
            f"{kind}.{i}"
            for kind in ("inner_blocks", "layer_blocks")
            for i in range(len(in_channels_list))
        ]
        accept_old_keys(self, {block: f"{block}.0" for block in blocks})

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Stages ``[N, channels, H_l, W_l]`` by name -> levels ``[N, F, H_l, W_l]`` by name.

        Both are ordered finest first.
        """
        stages = list(x.values())
        *finer, (block, stage) = zip(self.inner_blocks, stages, strict=True)
        merged = [block(stage)]
        for block, stage in reversed(finer):  # top-down: coarse to fine
            merged.insert(0, self.merge(block, stage, merged[0]))
        pyramid = [block(level) for block, level in zip(self.layer_blocks, merged, strict=True)]
        names = list(x)
        if self.extra_blocks is not None:
            pyramid, names = self.extra_blocks(pyramid, stages, names)
        return dict(zip(names, pyramid, strict=True))

    @staticmethod
    def merge(block: nn.Module, stage: Tensor, coarser: Tensor) -> Tensor:
        """Lateral connection and upsampled coarser level, added (Figure 3).

        Args:
            block: the 1x1 convolution.
            stage: ``[N, channels, H, W]``.
            coarser: the merged map of the next level.

        Returns:
            The merged map of this level, ``[N, F, H, W]``.
        """
        lateral: Tensor = block(stage)
        lateral += F.interpolate(coarser, size=lateral.shape[-2:])
        return lateral
