"""torchvision's model with the same weights, and the inputs and outputs of its stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    FasterRCNN,
    MaskRCNN,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops.misc import FrozenBatchNorm2d

from maskrcnn_scratch import faster_rcnn
from maskrcnn_scratch.without_memory import without_random_numbers

# Only the "v2" models normalise in the FPN.
NORM_OF_V2 = "backbone.fpn.inner_blocks.0.1.weight"


def reference_of(model: faster_rcnn.FasterRCNN) -> GeneralizedRCNN:
    """torchvision's model with the weights and sizes of ``model``, one of the four ResNet-50-FPN.

    Raises:
        RuntimeError: ``model`` has other parameters than they have.
    """
    weights = model.state_dict()
    options: dict[str, Any] = {
        "num_classes": len(weights["roi_heads.box_predictor.cls_score.bias"]),
        "min_size": model.transform.min_size,
        "max_size": model.transform.max_size,
    }
    has_mask = model.roi_heads.has_mask()
    reference: GeneralizedRCNN
    with without_random_numbers():
        if NORM_OF_V2 in weights:
            build = maskrcnn_resnet50_fpn_v2 if has_mask else fasterrcnn_resnet50_fpn_v2
            reference = build(weights=None, weights_backbone=None, **options)
        else:
            norm = model.get_submodule("backbone.body.bn1")
            norm_layer: Callable[[int], nn.Module] = partial(FrozenBatchNorm2d, eps=norm.eps)
            if isinstance(norm, nn.BatchNorm2d):
                norm_layer = nn.BatchNorm2d
            backbone = resnet_fpn_backbone(
                backbone_name="resnet50", weights=None, norm_layer=norm_layer
            )
            reference = (MaskRCNN if has_mask else FasterRCNN)(backbone, **options)
    reference.to(next(model.parameters()).dtype).load_state_dict(weights, strict=True)
    example = next(model.parameters())
    return reference.to(example.device).train(model.training)


def in_channels_last(reference: GeneralizedRCNN) -> GeneralizedRCNN:
    """``reference``, whose images are channels-last from here on, as ours are.

    The memory format decides in which order a convolution adds up, and so how it rounds.
    The features of torchvision in channels-last differ from those in NCHW by up to 3e-6. At a
    decision closer than that, for example an IoU beside the threshold of NMS, the two find other
    detections. Ours are those of channels-last.
    """
    reference.backbone.register_forward_pre_hook(
        lambda _, args: args[0].contiguous(memory_format=torch.channels_last)
    )
    return reference


RECORDED = (
    "transform",
    "backbone",
    "backbone.body",
    "rpn",
    "rpn.head",
    "rpn.anchor_generator",
    "roi_heads",
    "roi_heads.box_roi_pool",
    "roi_heads.box_head",
    "roi_heads.box_predictor",
    "roi_heads.mask_roi_pool",
    "roi_heads.mask_head",
    "roi_heads.mask_predictor",
)


class Recording:
    """One run of torchvision's model. Without a mask branch, its parts are not in the dicts.

    Attributes:
        reference: the model that ran.
        inputs, outputs: positional arguments and result of each module in ``RECORDED``, by name.
        results: what the model returns.
    """

    def __init__(self, reference: GeneralizedRCNN, images: Sequence[Tensor]) -> None:
        self.reference = reference
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, Any] = {}
        hooks = [
            reference.get_submodule(name).register_forward_hook(self._recorder(name))
            for name in RECORDED
            if reference.roi_heads.has_mask() or "mask" not in name
        ]
        with torch.no_grad():
            self.results: list[dict[str, Tensor]] = reference(list(images))
        for hook in hooks:
            hook.remove()

    def _recorder(self, name: str) -> Any:
        def record(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
            self.inputs[name] = inputs
            if name == "roi_heads":  # its dicts are written to afterwards
                output = [dict(result) for result in output[0]], output[1]
            self.outputs[name] = output

        return record
