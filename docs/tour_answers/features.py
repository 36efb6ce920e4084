"""Answers of chapters 1 to 3: transform, backbone and feature pyramid."""

from __future__ import annotations

import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tour_answers.shared import found, model, resnet50
from tour_helpers import photograph, shapes

from maskrcnn_scratch.backbone import FeaturePyramidNetwork
from maskrcnn_scratch.conventions import Conventions
from maskrcnn_scratch.transform import GeneralizedRCNNTransform


def answer_1a() -> None:
    """Size and padding of an image of 20 x 400 pixels."""
    choices = Conventions.torchvision()
    transform = GeneralizedRCNNTransform(800, 1333, choices.image_mean, choices.image_std).eval()
    batch, _ = transform([torch.rand(3, 20, 400)])
    height, width = batch.sizes[0].tolist()
    padded_height, padded_width = batch.padded_size
    padding = 1 - height * width / (padded_height * padded_width)
    print(f"The longer side decides: {height} x {width}, padded to {padded_height} x")
    print(f"{padded_width}; {padding:.0%} of the batch is padding.")


def answer_1b() -> None:
    """The resize against one that averages."""
    image = photograph()[None]
    quick, averaged = (
        F.interpolate(image, scale_factor=0.25, mode="bilinear", antialias=flag)
        for flag in (False, True)
    )
    difference = (quick - averaged).abs()
    print(f"By {float(difference.mean()) * 255:.1f} of 255 grey levels on average, and up to")
    print(f"{float(difference.max()) * 255:.0f}: fine texture is aliased. Weights are used to it.")


def answer_2a() -> None:
    """Parameters and multiplications of each stage."""
    body = resnet50().get_submodule("backbone.body")
    work: dict[str, float] = {}

    def count(layer: nn.Conv2d, _: object, output: Tensor, stage: str) -> None:
        work[stage] = work.get(stage, 0) + output.numel() * layer.weight[0].numel()

    for name, layer in body.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(partial(count, stage=name.split(".")[0]))
    with torch.no_grad():
        body(torch.zeros(1, 3, 800, 1200))
    for stage, multiplications in work.items():
        number = sum(p.numel() for p in body.get_submodule(stage).parameters())
        print(f"{stage:7} {number / 1e6:6.2f} M parameters {multiplications / 1e9:6.1f} G products")
    print("Parameters grow with every stage, the work per stage hardly does: half the resolution,")
    print("twice the channels.")


def answer_2b() -> None:
    """Batch normalisation with the statistics of one image."""
    image, _ = shapes()
    changed = model()
    batch, _ = changed.transform([image])
    before = changed.backbone(batch.tensors)
    for layer in changed.backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.momentum = 1.0
    with torch.no_grad():
        changed.backbone(batch.tensors)  # takes this image's statistics over
        after = changed.eval().backbone(batch.tensors)
    for name in before:
        error = (after[name] - before[name]).norm() / before[name].norm()
        print(f"P{'6' if name == 'pool' else int(name) + 2}: changed by {error.item():.0%}")
    print(f"Before {found(model())} are found, with the statistics of one image {found(changed)}.")


def answer_3a() -> None:
    """The pyramid without its top-down addition."""
    changed = model()

    class NoTopDown(FeaturePyramidNetwork):
        def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
            pyramid = [
                layer(inner(stage))
                for layer, inner, stage in zip(
                    self.layer_blocks, self.inner_blocks, x.values(), strict=True
                )
            ]
            levels, names = self.extra_blocks(pyramid, list(x.values()), list(x))
            return dict(zip(names, levels, strict=True))

    changed.backbone.fpn.__class__ = NoTopDown
    print(f"With the pyramid {found(model())}, without the top-down addition {found(changed)}.")
    print("The weights were trained with it; a model trained without would adapt to some degree.")


@torch.no_grad()
def answer_3b() -> None:
    """Share of the backbone and the pyramid in the time of an inference."""
    big = resnet50()
    image = torch.rand(3, 800, 1200)
    batch, _ = big.transform([image])
    big([image])
    started = time.perf_counter()
    big.extract_features(batch.tensors)
    middle = time.perf_counter()
    big([image])
    ended = time.perf_counter()
    part = (middle - started) / (ended - middle)
    print(f"{middle - started:.2f} of {ended - middle:.2f} s, {part:.0%} (one run, ResNet-50).")
