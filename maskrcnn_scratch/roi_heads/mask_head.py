"""The mask head: a small fully convolutional network on each RoI (Mask R-CNN, 3, Figure 4).

Shapes: see ``structures``; the mask head has ``E`` channels per RoI.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from maskrcnn_scratch.conv import Conv2dNormActivation, accept_old_keys


class MaskRCNNHeads(nn.Sequential):
    """3x3 convolutions with ReLU: ``[R, F, S, S]`` -> ``[R, E, S, S]``.

    Args:
        in_channels: channels of the feature maps, ``F``.
        layers: output channels of each convolution; ``E`` is the last.
        dilation: of each convolution.
        norm_layer: after each convolution, called with the number of channels; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        layers: Sequence[int],
        dilation: int,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        channels = [in_channels, *layers]
        super().__init__(
            *(
                Conv2dNormActivation(before, after, dilation=dilation, norm_layer=norm_layer)
                for before, after in pairwise(channels)
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        accept_old_keys(self, {f"mask_fcn{i + 1}": f"{i}.0" for i in range(len(layers))})


class MaskRCNNPredictor(nn.Sequential):
    """A stride-2 deconvolution, then one mask for each class: ``[R, E, S, S]`` -> ``[R, C, M, M]``.

    ``M = 2 * S``.

    Args:
        in_channels: ``E``.
        dim_reduced: channels between the two layers.
        num_classes: ``C``, including the background, whose mask is not used; 1 for masks that do
            not depend on the class.
    """

    conv5_mask: nn.ConvTranspose2d
    relu: nn.ReLU
    mask_fcn_logits: nn.Conv2d

    def __init__(self, in_channels: int, dim_reduced: int, num_classes: int) -> None:
        super().__init__(
            OrderedDict(
                conv5_mask=nn.ConvTranspose2d(in_channels, dim_reduced, 2, stride=2),
                relu=nn.ReLU(inplace=True),
                mask_fcn_logits=nn.Conv2d(dim_reduced, num_classes, 1),
            )
        )
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")

    def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mask logits of every class, ``[R, C, M, M]``, or only of ``labels [R]``: ``[R, M, M]``.

        With ``labels``, the last layer computes one dot product per pixel instead of ``C``.
        """
        if labels is None:
            return super().forward(input)
        hidden = self.relu(self.conv5_mask(input))  # [R, dim_reduced, M, M]
        last = self.mask_fcn_logits
        assert last.bias is not None
        if last.out_channels == 1:
            labels = torch.zeros_like(labels)
        weight = last.weight[labels, :, 0]  # [R, dim_reduced, 1]
        logits = torch.matmul(hidden.flatten(2).transpose(1, 2), weight)  # [R, M * M, 1]
        return logits.reshape_as(hidden[:, 0]) + last.bias[labels, None, None]
