"""The small Mask R-CNN that a part is put into, and the images that it is given.

Shapes: see ``structures``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.component_check.result import require
from maskrcnn_scratch.component_check.subject import Setting, shapes
from maskrcnn_scratch.data.shapes import ShapesDataset
from maskrcnn_scratch.mask_rcnn import MaskRCNN
from maskrcnn_scratch.roi_heads import (
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    MultiScaleRoIAlign,
    TwoMLPHead,
)
from maskrcnn_scratch.rpn import AnchorGenerator

LEVELS = ("0", "1", "2", "3", "pool")  # of the small backbone, strides 4 to 64
POOLED_LEVELS = 4  # the finest ones, as in FPN, section 4.2
WIDTH = 64  # channels of the heads


class SmallBackbone(nn.Module):
    """The backbone of ``small_maskrcnn``, with ``channels`` channels and its first ``levels``."""

    def __init__(self, channels: int, levels: int = len(LEVELS)) -> None:
        super().__init__()
        inner: Any = small_maskrcnn(num_classes=2).backbone
        self.inner = inner
        self.out_channels = channels
        self.levels = levels
        inner.fpn.layer_blocks[levels:].requires_grad_(False)  # of levels that are dropped
        self.project = nn.ModuleList(
            nn.Identity() if channels == inner.out_channels
            # One convolution per level: the finest feature maps come first.
            else nn.Conv2d(inner.out_channels, channels, 1)
            for _ in range(levels)
        )  # fmt: skip

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = list(self.inner(images).items())[: self.levels]
        return {name: layer(level) for layer, (name, level) in zip(self.project, maps, strict=True)}


def default_anchor_generator(setting: Setting, levels: int, anchors: int = 3) -> AnchorGenerator:
    """``anchors`` anchors per location; sizes from an eighth of the image's side."""
    sizes = tuple((setting.side / 8 * 2**level,) for level in range(levels))
    ratios = (0.5, 1.0, 2.0) if anchors == 3 else tuple(2.0**n for n in range(anchors))
    return AnchorGenerator(sizes, ratios)


def default_pool(names: tuple[str, ...], side: int) -> MultiScaleRoIAlign:
    """RoIAlign for small images: boxes of 64 pixels are pooled from stride 8."""
    return MultiScaleRoIAlign(names, side, 2, canonical_scale=64, canonical_level=3)


@torch.no_grad()
def model_around(
    setting: Setting,
    *,
    backbone: Any = None,
    anchor_generator: Any = None,
    rpn_head: Any = None,
    anchors: int = 3,
    roi_pool: Any = None,
    box_head: Any = None,
    box_predictor: Any = None,
    mask_head: Any = None,
    mask_predictor: Any = None,
    branches: Any = None,
    width: int = WIDTH,
) -> MaskRCNN:
    """A small Mask R-CNN in eval mode, with default parts that fit the given ones.

    Args:
        anchors: per location, of the default anchor generator.
        roi_pool: for boxes and masks.
        width: channels between the default heads and the predictors.
    """
    if backbone is None:
        levels = len(LEVELS)
        if anchor_generator is not None:
            levels = len(anchor_generator.num_anchors_per_location())
            require(
                levels <= len(LEVELS),
                f"the anchor generator has {levels} levels, the small model at most {len(LEVELS)}",
            )
        backbone = SmallBackbone(setting.channels, levels)
    channels = backbone.out_channels
    names = level_names(backbone, setting.side)
    if anchor_generator is None:
        anchor_generator = default_anchor_generator(setting, len(names), anchors)
    pooled = names[:POOLED_LEVELS]
    box_pool = roi_pool or default_pool(pooled, 7)
    mask_pool = roi_pool or default_pool(pooled, 14)
    height, columns = box_pool.output_size
    box_head = box_head or TwoMLPHead(channels * height * columns, width)
    if box_predictor is None:
        vectors = run_in_eval(box_head, torch.zeros(1, channels, height, columns))
        box_predictor = FastRCNNPredictor(vectors.shape[1], setting.num_classes)
    mask_head = mask_head or MaskRCNNHeads(channels, (width,), dilation=1)
    if mask_predictor is None:
        hidden = run_in_eval(mask_head, torch.zeros(1, channels, *mask_pool.output_size))
        mask_predictor = MaskRCNNPredictor(hidden.shape[1], WIDTH, setting.num_classes)
    model = MaskRCNN(
        backbone,
        min_size=setting.side,
        max_size=2 * setting.side,
        rpn_anchor_generator=anchor_generator,
        rpn_head=rpn_head,
        rpn_pre_nms_top_n_train=150,
        rpn_pre_nms_top_n_test=150,
        rpn_post_nms_top_n_train=80,
        rpn_post_nms_top_n_test=80,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=32,
        box_detections_per_img=20,
        box_roi_pool=box_pool,
        box_head=box_head,
        box_predictor=box_predictor,
        mask_roi_pool=mask_pool,
        mask_head=mask_head,
        mask_predictor=mask_predictor,
        branches=branches,
    )
    return model.eval()


def level_names(backbone: Any, side: int) -> tuple[str, ...]:
    """Names of the backbone's feature maps, finest first."""
    maps = run_in_eval(backbone, torch.zeros(1, 3, side, side))
    if isinstance(maps, Tensor):
        return ("0",)
    require(isinstance(maps, dict), f"the backbone returns {shapes(maps)}, not a dict of maps")
    return tuple(maps)


def run_in_eval(part: Any, value: Tensor) -> Any:
    """``part(value)``, in eval mode so that batch normalisation counts nothing."""
    return (part.eval() if isinstance(part, nn.Module) else part)(value)


def feature_maps(setting: Setting, batch: int = 3) -> dict[str, Tensor]:
    """Random feature maps of images of ``side`` x ``2 * side`` pixels, as of the small backbone."""
    generator = torch.Generator().manual_seed(0)
    height, width = padded_size(setting)
    return {
        name: torch.randn(
            batch,
            setting.channels,
            max(1, height // 2 ** (level + 2)),
            max(1, width // 2 ** (level + 2)),
            generator=generator,
        )
        for level, name in enumerate(LEVELS)
    }


def padded_size(setting: Setting) -> tuple[int, int]:
    """(height, width) of the images of ``feature_maps``."""
    return setting.side, 2 * setting.side


def images_and_targets(
    count: int, side: int, num_classes: int
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Generated shapes; where the model has fewer classes, several shapes share a label."""
    dataset = ShapesDataset(count, side=side)
    images, targets = [], []
    for n in range(count):
        image, target = dataset[n]
        labels = (target["labels"] - 1) % (num_classes - 1) + 1
        images.append(image)
        targets.append({"boxes": target["boxes"], "labels": labels, "masks": target["masks"]})
    return images, targets


def without_objects(target: dict[str, Any]) -> dict[str, Any]:
    """The same target with no object."""
    return {name: value[:0] for name, value in target.items()}
