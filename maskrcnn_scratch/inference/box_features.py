"""Box features in channels-last order, without a copy between RoIAlign and the first linear layer.

RoIAlign reads all channels of a pixel at once from channels-last maps, and writes its result
fastest in the same order. But the first linear layer of a box head expects the order of
``flatten``, ``[F, S, S]``. So the columns of its weight are brought into the order ``[S, S, F]``,
in which channels-last features are stored. The result is the same sum in another order. Shapes: see
``structures``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inference.epilogues import is_changed
from maskrcnn_scratch.roi_heads import FastRCNNConvFCHead, TwoMLPHead
from maskrcnn_scratch.roi_heads.pooler import MultiScaleRoIAlign


class FlattenChannelsLast(nn.Module):
    """``[R, F, S, S]`` -> ``[R, S * S * F]``, a view of a channels-last input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(start_dim=1)


def use_channels_last_box_features(model: GeneralizedRCNN) -> str | None:
    """Replaces ``flatten`` and permutes the weight of the layer after it, in place.

    ``TwoMLPHead`` and ``FastRCNNConvFCHead`` become a ``nn.Sequential``, whose state dict has other
    keys. The pooler then writes channels-last features.

    Returns:
        Why the model was not changed: its pooler or box head is another module. None if it was
        changed, and if another stage stands in place of ``RoIHeads``.
    """
    heads: Any = model.roi_heads
    if not (hasattr(heads, "box_roi_pool") and hasattr(heads, "box_head")):
        return None
    pool, head = heads.box_roi_pool, heads.box_head
    if type(pool) is not MultiScaleRoIAlign or is_changed(pool):
        return f"box_roi_pool is {_describe(pool)}"
    if isinstance(head, nn.Sequential) and any(type(m) is FlattenChannelsLast for m in head):
        return None  # done before
    layers = layers_of(head)
    if layers is None:
        return f"box_head is {_describe(head)}"
    index = next(i for i, layer in enumerate(layers) if type(layer) is nn.Flatten)
    linear: Any = layers[index + 1]
    height, width = pool.output_size
    if linear.in_features % (height * width):
        return f"box_head takes {linear.in_features} values, not {height} x {width} bins"
    bins = linear.weight.unflatten(1, (-1, height * width))  # [E, F, S * S]
    linear.weight = nn.Parameter(bins.mT.flatten(start_dim=1).contiguous(), requires_grad=False)
    layers[index] = FlattenChannelsLast()
    pool.channels_last = True
    heads.box_head = nn.Sequential(*layers).train(head.training)
    return None


def layers_of(head: Any) -> list[nn.Module] | None:
    """The layers of a box head, with ``nn.Flatten`` before the first ``nn.Linear``.

    Returns:
        None for anything but ``TwoMLPHead``, ``FastRCNNConvFCHead`` and the layers that they make,
        and for heads with hooks.
    """
    if type(head) is TwoMLPHead:
        layers = [nn.Flatten(), head.fc6, nn.ReLU(), head.fc7, nn.ReLU()]
    elif type(head) is FastRCNNConvFCHead:
        layers = list(head)
    else:
        return None
    flat = [i for i, layer in enumerate(layers) if type(layer) is nn.Flatten]
    if len(flat) != 1 or [type(layer) for layer in layers[flat[0] + 1 :][:1]] != [nn.Linear]:
        return None
    return None if any(is_changed(module) for module in [head, *layers]) else layers


def _describe(module: Any) -> str:
    changed = isinstance(module, nn.Module) and is_changed(module)
    return f"a {type(module).__name__}" + (" with hooks" if changed else "")
