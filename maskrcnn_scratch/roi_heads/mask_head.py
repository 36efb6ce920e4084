"""The mask head: a small convolutional network on each RoI (Mask R-CNN, section 3, Fig. 4)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from maskrcnn_scratch.conv import Conv2dNormActivation, accept_old_keys


class MaskRCNNHeads(nn.Sequential):
    """3x3 convolutions: ``[R, in_channels, P, P]`` -> ``[R, layers[-1], P, P]``.

    Args:
        in_channels: channels of the pyramid.
        layers: channels of each convolution.
        dilation: of each convolution.
        norm_layer: after each convolution, called with the number of channels.
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
    """Twice the resolution, then one mask a class: ``[R, C, P, P]`` -> ``[R, classes, 2P, 2P]``.

    Args:
        in_channels: channels of the mask head.
        dim_reduced: channels between the two layers.
        num_classes: with the background, whose mask nothing looks at.
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
        """Logits of every class, or with ``labels [R]`` of that class alone: ``[R, 2P, 2P]``.

        A single class costs one dot product a pixel instead of one for each class.
        """
        if labels is None:
            return super().forward(input)
        hidden = self.relu(self.conv5_mask(input))  # [R, dim_reduced, 2P, 2P]
        last = self.mask_fcn_logits
        assert last.bias is not None
        weight = last.weight[labels, :, 0]  # [R, dim_reduced, 1]
        logits = torch.matmul(hidden.flatten(2).transpose(1, 2), weight)  # [R, 2P * 2P, 1]
        return logits.reshape_as(hidden[:, 0]) + last.bias[labels, None, None]
