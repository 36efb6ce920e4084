"""The complete model: inference, the options of ``optimize``, and a training step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.inference import optimize
from maskrcnn_scratch.parity.losses import random_target
from maskrcnn_scratch.parity.reference import reference_of
from maskrcnn_scratch.structures import Result
from maskrcnn_scratch.training.winograd import train_with_winograd
from tools.benchmarks.clock import Clock, Timing

CPU_OPTIONS: dict[str, dict[str, Any]] = {
    "folded": {},
    "folded, contiguous": {"memory_format": torch.contiguous_format},
    "folded, Winograd F(2x2, 3x3)": {"winograd": "f2"},
    "folded, Winograd F(4x4, 3x3)": {"winograd": "f4"},
    "folded, bfloat16": {"dtype": torch.bfloat16},
    "compiled": {"compile": True},
    "compiled, bfloat16": {"compile": True, "dtype": torch.bfloat16},
}
CUDA_OPTIONS: dict[str, dict[str, Any]] = {
    "folded": {},
    "folded, bfloat16": {"dtype": torch.bfloat16},
    "CUDA graph": {"cuda_graph": True},
    "CUDA graph, bfloat16": {"cuda_graph": True, "dtype": torch.bfloat16},
}


@torch.no_grad()
def time_model(clock: Clock, model: MaskRCNN, image: Tensor) -> Iterator[Timing]:
    """Inference from image to pasted masks, of 100, 10 and no detections."""
    reference = reference_of(model)
    heads = model.roi_heads, reference.roi_heads
    scores = model([image])[0]["scores"]
    middle = float((scores[9] + scores[10]) / 2)
    for count, threshold in ((len(scores), heads[0].score_thresh), (10, middle), (0, 1.0)):
        before = heads[0].score_thresh
        heads[0].score_thresh = heads[1].score_thresh = threshold
        yield clock.pair(
            "e2e", f"one image, {count} detections",
            lambda: model([image]), lambda: reference([image]),
        )  # fmt: skip
        heads[0].score_thresh = heads[1].score_thresh = before
    for size in (8, 32) if clock.device.type == "cuda" else (2,):
        batch = [image] * size
        yield clock.pair("e2e", f"{size} images", partial(model, batch), partial(reference, batch))
    products = multiplications(model, image)
    yield clock.pair(
        "e2e", "one image, beside its convolutions and matrix products alone",
        lambda: model([image]), lambda: [layer(x) for layer, x in products],
    )  # fmt: skip


def multiplications(model: MaskRCNN, image: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """The layers that multiply matrices, with their inputs: a lower bound for the model's time."""
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda layer, args: calls.append((layer, args[0])))
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]
    model([image])
    for hook in hooks:
        hook.remove()
    return calls


@torch.no_grad()
def time_options(clock: Clock, model: MaskRCNN, image: Tensor) -> Iterator[Timing]:
    """Each option of ``optimize`` against torchvision, and how much it changes the detections."""
    reference, found = reference_of(model), model([image])[0]
    options = CUDA_OPTIONS if clock.device.type == "cuda" else CPU_OPTIONS
    for name, arguments in options.items():
        optimized = optimize(model, **arguments)
        same = matched(optimized([image])[0], found)
        yield clock.pair(
            "options", f"{name} ({same:.0%} of detections the same)",
            partial(optimized, [image]), lambda: reference([image]),
        )  # fmt: skip
        torch.compiler.reset()


def matched(ours: Result, theirs: Result, iou: float = 0.9) -> float:
    """The fraction of ``theirs`` that has a detection of the same label and nearly the same box."""
    overlap = box_iou(theirs["boxes"], ours["boxes"])
    overlap = overlap * (theirs["labels"][:, None] == ours["labels"])
    return float((overlap.amax(dim=1) >= iou).float().mean())


def time_training(clock: Clock, model: MaskRCNN, image: Tensor) -> Iterator[Timing]:
    """A step of SGD: forward, backward, update; 20 objects per image."""
    reference = reference_of(model).train()
    sides = {"": copy.deepcopy(model).train()}
    if clock.device.type == "cpu":
        sides[" with Winograd"] = fast = copy.deepcopy(model).train()
        train_with_winograd(fast)
    optimizers = {
        side: torch.optim.SGD(
            [p for p in side.parameters() if p.requires_grad], lr=1e-6, momentum=0.9
        )
        for side in (*sides.values(), reference)
    }

    def step(side: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        optimizers[side].zero_grad()
        torch.stack(list(side(images, targets).values())).sum().backward()
        optimizers[side].step()

    for size in (2, 16) if clock.device.type == "cuda" else (1,):
        images = [image] * size
        targets = [dict(random_target(image, 20, seed=seed)) for seed in range(size)]
        for name, side in sides.items():
            yield clock.pair(
                "train", f"step{name} on {size} image{'s' if size > 1 else ''}, 20 objects each",
                partial(step, side, images, targets),
                partial(step, reference, images, targets),
            )  # fmt: skip
