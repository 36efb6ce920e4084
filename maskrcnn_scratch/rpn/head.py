"""The RPN head: a 3x3 convolution, then two 1x1 convolutions, on each level.

Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn_scratch.conv import Conv2dNormActivation, accept_old_keys


class RPNHead(nn.Module):
    """Objectness and box deltas for each anchor (Faster R-CNN, section 3.1).

    The 3x3 convolution is the paper's sliding window. All levels share the weights (FPN, 4.1).

    Args:
        in_channels: channels of every feature map, ``F``.
        num_anchors: anchors per location, ``a``.
        conv_depth: number of 3x3 convolutions before the predictions.
    """

    def __init__(self, in_channels: int, num_anchors: int, conv_depth: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(Conv2dNormActivation(in_channels, in_channels) for _ in range(conv_depth))
        )
        self.cls_logits = nn.Conv2d(in_channels, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        accept_old_keys(self, {"conv": "conv.0.0"})

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits ``[N, a, H_l, W_l]`` and deltas ``[N, 4 * a, H_l, W_l]`` per level."""
        objectness, pred_bbox_deltas = [], []
        for feature in features:
            hidden = self.conv(feature)  # [N, F, H_l, W_l]
            objectness.append(self.cls_logits(hidden))
            pred_bbox_deltas.append(self.bbox_pred(hidden))
        return objectness, pred_bbox_deltas


def flatten_levels(predictions: Sequence[Tensor], values: int) -> Tensor:
    """``[N, a * values, H_l, W_l]`` per level -> ``[N, A, values]``, in the order of the anchors.

    Channels-last predictions are copied once, by the concatenation: ``permute`` and ``flatten``
    give views of them.
    """
    # [N, H_l * W_l, a * values] per level, or [N, H_l * W_l * a, values]
    rows = [level.permute(0, 2, 3, 1).flatten(1, 2) for level in predictions]
    if any(row.shape[2] != rows[0].shape[2] for row in rows):  # anchors per location differ
        rows = [row.reshape(row.shape[0], -1, values) for row in rows]
    return torch.cat(rows, dim=1).reshape(rows[0].shape[0], -1, values)
