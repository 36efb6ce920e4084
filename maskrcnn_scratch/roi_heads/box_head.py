"""The box head: a class and box deltas for each RoI (Fast R-CNN, section 2; FPN, section 4.2).

Shapes: see ``structures``; the box head has ``E`` values per RoI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch.conv import Conv2dNormActivation


class TwoMLPHead(nn.Module):
    """Two fully connected layers with ReLU: ``[R, F, S, S]`` -> ``[R, E]``.

    Args:
        in_channels: values of one pooled RoI, ``F * S * S``.
        representation_size: values of each layer's output, ``E``.
    """

    def __init__(self, in_channels: int, representation_size: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_channels, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc6(x.flatten(start_dim=1)))  # [R, E]
        return F.relu(self.fc7(x))  # [R, E]


class FastRCNNConvFCHead(nn.Sequential):
    """Convolutions, then fully connected layers: ``[R, F, S, S]`` -> ``[R, E]``.

    The head of the "v2" models (Li et al. 2021, "Benchmarking Detection Transfer Learning with
    Vision Transformers").

    Args:
        input_size: (F, S, S) of a pooled RoI.
        conv_layers: output channels of each 3x3 convolution.
        fc_layers: output values of each fully connected layer; ``E`` is the last.
        norm_layer: after each convolution, called with the number of channels; None for none.
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
    """Class logits and, for each class, box deltas.

    Args:
        in_channels: values that describe a RoI, ``E``.
        num_classes: ``C``, including the background, which is class 0.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, num_classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[R, E]`` -> class logits ``[R, C]`` and box deltas ``[R, C * 4]``."""
        x = x.flatten(start_dim=1)  # as torchvision also accepts [R, E, 1, 1]
        return self.cls_score(x), self.bbox_pred(x)
