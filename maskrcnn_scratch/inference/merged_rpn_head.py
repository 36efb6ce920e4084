"""The RPN head of an optimised model. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn_scratch.rpn.head import RPNHead


class MergedRPNHead(nn.Module):
    """An ``RPNHead`` for inference whose two predictions are one convolution.

    Args:
        head: its weights are used.
    """

    def __init__(self, head: RPNHead) -> None:
        super().__init__()
        self.conv = head.conv
        self.num_logits = head.cls_logits.out_channels
        both = (head.cls_logits, head.bbox_pred)
        self.predict = nn.Conv2d(
            head.cls_logits.in_channels, sum(layer.out_channels for layer in both), 1
        )
        state = {
            name: torch.cat([layer.state_dict()[name] for layer in both])
            for name in ("weight", "bias")
        }
        self.predict.load_state_dict(state, assign=True)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See ``RPNHead``."""
        predictions = [self.predict(self.conv(feature)) for feature in features]
        return (
            [level[:, : self.num_logits] for level in predictions],
            [level[:, self.num_logits :] for level in predictions],
        )
