"""Random weights that behave like trained ones, for comparing models without a download.

Seeded random weights alone give every box the same class and a meaningless score. One pass over a
photograph sets what training would have set: the statistics of batch normalisation, and the mean
and standard deviation of every other layer's output. Detections then come in many classes, sizes
and scores. No layer gives nearly the same output for every input, which would amplify rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from maskrcnn_scratch import (
    FasterRCNN,
    MaskRCNN,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn_v2,
    resnet_fpn_backbone,
)
from maskrcnn_scratch.backbone import FrozenBatchNorm2d
from maskrcnn_scratch.structures import boxes_to_rois

# Standard deviation of each predictor's outputs, near that of the published COCO weights; 1 for
# other layers.
SPREAD = {
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.05,
    "roi_heads.box_predictor.cls_score": 1.0,
    "roi_heads.box_predictor.bbox_pred": 0.5,
    "roi_heads.mask_predictor.mask_fcn_logits": 1.2,
}
# Scale of each bottleneck's last normalisation, beside its shortcut. At 1, rounding grows fourfold
# per stage.
RESIDUAL_SCALE = 0.05
Architecture: TypeAlias = Literal[
    "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2",
]  # fmt: skip
MODELS_V2: dict[str, Callable[..., FasterRCNN]] = {
    "maskrcnn_resnet50_fpn_v2": maskrcnn_resnet50_fpn_v2,
    "fasterrcnn_resnet50_fpn_v2": fasterrcnn_resnet50_fpn_v2,
}
Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def calibrated_maskrcnn(
    seed: int, photograph: Tensor, *, background_logit: float = 2.5, **kwargs: Any
) -> MaskRCNN:
    """Mask R-CNN ResNet-50-FPN in eval mode with seeded, calibrated weights.

    Args:
        photograph: ``[3, H, W]`` in 0-1.
        background_logit: added to class 0; 2.5 gives a hundred detections per image, 6 a few.
        **kwargs: to ``MaskRCNN``.
    """
    model = random_model("maskrcnn_resnet50_fpn", seed, **kwargs)
    assert isinstance(model, MaskRCNN)
    calibrate(model, photograph, background_logit)
    return model


def random_model(architecture: Architecture, seed: int, **kwargs: Any) -> FasterRCNN:
    """A model of 91 classes in eval mode with random weights.

    The ResNet of the models of the paper has ``FrozenBatchNorm2d``, as with trained weights.

    Args:
        **kwargs: to ``MaskRCNN`` or ``FasterRCNN``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture.endswith("_v2"):
            build = MODELS_V2[architecture]
            model: FasterRCNN = build(weights=None, weights_backbone=None, num_classes=91, **kwargs)
            return model.eval()
        backbone = resnet_fpn_backbone(backbone_name="resnet50")
        kind = MaskRCNN if architecture.startswith("mask") else FasterRCNN
        return kind(backbone, num_classes=91, **kwargs).eval()


@torch.no_grad()
def calibrate(
    model: FasterRCNN,
    photograph: Tensor,
    background_logit: float,
    residual_scale: float = RESIDUAL_SCALE,
) -> None:
    """Sets the statistics of ``model`` to those of one pass over ``photograph [3, H, W]``.

    Args:
        background_logit: added to class 0.
        residual_scale: of each bottleneck's last normalisation; 1 as in a new model.
    """
    with _calibrating(model, background_logit, residual_scale):
        stages = model.run_stages([photograph])
        if model.roi_heads.mask_predictor is not None:
            # Inference computes the mask of one class only and does not call the last layer.
            rois = boxes_to_rois(stages.detections.boxes)[stages.detections.valid.flatten()]
            model.roi_heads.predict_masks(stages.features, rois, stages.images.padded_size)


@torch.no_grad()
def calibrate_backbone(model: FasterRCNN, photograph: Tensor) -> None:
    """What ``calibrate`` does, of the backbone alone: the other stages do not run."""
    with _calibrating(model):
        batch, _ = model.transform([photograph])
        model.extract_features(batch.tensors)


@contextmanager
def _calibrating(
    model: FasterRCNN, background_logit: float = 0.0, residual_scale: float = RESIDUAL_SCALE
) -> Iterator[None]:
    """Each module sets its statistics at its first call inside the context."""
    hooks: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            if name.endswith(".bn3"):
                module.weight.fill_(residual_scale)
            hooks.append(module.register_forward_pre_hook(_once(_set_statistics)))
        elif isinstance(module, Layer) and module.bias is not None:
            offset = background_logit if name.endswith("cls_score") else 0.0
            set_spread = _set_spread(SPREAD.get(name, 1.0), offset)
            hooks.append(module.register_forward_hook(_once(set_spread)))
    yield
    for hook in hooks:
        hook.remove()


def _once(hook: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """``hook`` at the module's first call only (the RPN head runs on each level)."""
    called = False

    def first(*args: Any) -> Tensor | None:
        nonlocal called
        if called:
            return None
        called = True
        return hook(*args)

    return first


def _set_statistics(norm: FrozenBatchNorm2d | nn.BatchNorm2d, args: tuple[Tensor]) -> None:
    variance, mean = torch.var_mean(args[0], dim=(0, 2, 3))
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _set_spread(spread: float, first_offset: float) -> Callable[..., Tensor]:
    """A hook that gives each output channel mean 0 and this standard deviation.

    ``first_offset`` is added to the first channel.
    """

    def hook(layer: Layer, _: tuple[Tensor], output: Tensor) -> Tensor:
        channel_last = output.movedim(1, -1)  # [..., channels]
        variance, mean = torch.var_mean(channel_last, dim=tuple(range(output.dim() - 1)))
        scale = spread * (variance + 1e-5).rsqrt()
        shift = -mean * scale
        shift[0] += first_offset
        output_dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        assert layer.bias is not None
        layer.weight.movedim(output_dim, -1).mul_(scale)
        layer.bias.mul_(scale).add_(shift)
        return (channel_last * scale + shift).movedim(-1, 1)

    return hook
