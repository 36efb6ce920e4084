"""3x3 convolutions by Winograd against ``F.conv2d``: the layers of the model on one image."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.inference.winograd import WinogradConv2d
from maskrcnn_scratch.winograd import reason_to_keep
from tools.benchmarks.clock import Clock, Timing


@torch.no_grad()
def time_winograd(clock: Clock, model: MaskRCNN, image: Tensor) -> Iterator[Timing]:
    """Each size of layer, then all layers in the order in which the model runs them.

    "Ours" is ``WinogradConv2d``, "theirs" is ``nn.Conv2d`` with a channels-last weight; both read
    the channels-last inputs of the model and run without their ReLU.
    """
    if clock.device.type != "cpu":
        return
    calls = _calls(copy.deepcopy(model).to(memory_format=torch.channels_last), image)
    sizes = {(tuple(x.shape), conv.out_channels): index for index, (conv, x) in enumerate(calls)}
    for m in (2, 4):
        fast = [WinogradConv2d(conv, m) for conv, _ in calls]
        name = f"F({m}x{m}, 3x3)"
        for (shape, out_channels), index in sizes.items():
            conv, x = calls[index]
            yield clock.pair(
                "winograd", f"{name}, {list(shape)} to {out_channels} channels",
                partial(fast[index], x), partial(conv, x),
            )  # fmt: skip
        yield clock.pair(
            "winograd", f"{name}, {len(calls)} layers in sequence",
            partial(_run, fast, calls), lambda: _run([conv for conv, _ in calls], calls),
        )  # fmt: skip


def _run(layers: Sequence[nn.Module], calls: Sequence[tuple[nn.Conv2d, Tensor]]) -> None:
    for layer, (_, x) in zip(layers, calls, strict=True):
        layer(x)


def _calls(model: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
    """The layers that ``use_winograd`` would replace, and the inputs of all of their calls."""
    calls: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda layer, args: calls.append((layer, args[0].clone())))
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and reason_to_keep(module) is None
    ]
    model([image])
    for hook in hooks:
        hook.remove()
    return calls
