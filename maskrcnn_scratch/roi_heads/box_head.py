"""The box head: what each RoI is, and where exactly (Fast R-CNN; FPN, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch.conv import Conv2dNormActivation


class TwoMLPHead(nn.Module):
    """Two fully connected layers.

    Args:
        in_channels: values of one pooled RoI, ``channels * P * P``.
        representation_size: values of the vector made of it.
    """

    def __init__(self, in_channels: int, representation_size: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_channels, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc6(x.flatten(start_dim=1)))  # [R, channels * P * P] -> [R, D]
        return F.relu(self.fc7(x))


class FastRCNNConvFCHead(nn.Sequential):
    """Convolutions, then fully connected layers (the head of the "v2" recipe).

    Args:
        input_size: (channels, P, P) of a pooled RoI.
        conv_layers: channels of each 3x3 convolution.
        fc_layers: values of each fully connected layer.
        norm_layer: after each convolution, called with the number of channels.
    """

    def __init__(
        self,
        input_size: tuple[int, int, int],
        conv_layers: Sequence[int],
        fc_layers: Sequence[int],
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        channels, height, width = input_size
        blocks: list[nn.Module] = []
        for layer in conv_layers:
            blocks.append(Conv2dNormActivation(channels, layer, norm_layer=norm_layer))
            channels = layer
        blocks.append(nn.Flatten())
        channels *= height * width
        for layer in fc_layers:
            blocks += [nn.Linear(channels, layer), nn.ReLU(inplace=True)]
            channels = layer
        super().__init__(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class FastRCNNPredictor(nn.Module):
    """Class logits and, for each class, box offsets.

    Args:
        in_channels: values of the vector that describes a RoI.
        num_classes: with the background, which is class 0.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, num_classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[R, in_channels]`` -> ``[R, num_classes]``, ``[R, 4 * num_classes]``."""
        x = x.flatten(start_dim=1)  # also takes [R, in_channels, 1, 1]
        return self.cls_score(x), self.bbox_pred(x)
