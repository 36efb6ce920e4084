"""What is in the gallery of swaps, ``docs/swaps``: the rows of its table."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from maskrcnn_scratch import AnchorGenerator, MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.data.shapes import ShapesDataset

GALLERY = Path(__file__).resolve().parents[2] / "docs" / "swaps"
if str(GALLERY) not in sys.path:  # its files are modules by their own names
    sys.path.insert(0, str(GALLERY))

TINY: dict[str, Any] = {
    "min_size": 64,
    "max_size": 64,
    "rpn_pre_nms_top_n_train": 50,
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_train": 30,
    "rpn_post_nms_top_n_test": 30,
    "rpn_batch_size_per_image": 32,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 6,
}


@dataclass(frozen=True)
class Swap:
    """One row of the table.

    Attributes:
        file: in ``docs/swaps``, without ``.py``.
        title, paper: as in the table.
        kind: of the part for ``maskrcnn check``, and the part's name in the file; None for
            ``build``, a whole model.
        options: of the file's ``build``.
        inference_only: the default model's weights serve.
        training_only: the part is not in an exported model.
        opset: of ONNX.
    """

    file: str
    title: str
    paper: str
    kind: tuple[str, str] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inference_only: bool = False
    training_only: bool = False
    opset: int = 18

    @property
    def name(self) -> str:
        return "-".join((self.file, *self.options.values()))

    @property
    def lines(self) -> int:
        return len((GALLERY / f"{self.file}.py").read_text().splitlines())

    def module(self) -> ModuleType:
        return import_module(self.file)

    def build(self, **options: Any) -> MaskRCNN:
        """The small model with the swap, for the shapes' classes."""
        if not hasattr(self.module(), "build"):  # nothing of the model is swapped
            return small_maskrcnn(ShapesDataset.num_classes, **options)
        return self.module().build(ShapesDataset.num_classes, **self.options, **options)

    def tiny(self) -> MaskRCNN:
        """For images of 64 pixels, with random weights and many detections."""
        torch.manual_seed(0)
        model = self.build(
            rpn_anchor_generator=AnchorGenerator((8, 16, 32, 48, 64), (0.5, 1.0, 2.0)), **TINY
        )
        model.roi_heads.score_thresh = 0.0
        for name, parameter in model.named_parameters():
            if name.endswith("offset.weight"):  # of deformable convolutions, which starts at 0
                torch.nn.init.normal_(parameter, std=0.1)
        return model


SWAPS = (
    Swap("soft_nms", "Soft-NMS", "Bodla 2017", ("nms", "soft_nms"), inference_only=True),
    Swap("class_agnostic_nms", "class-agnostic NMS", "—", ("nms", "class_agnostic_nms"),
         inference_only=True),
    Swap("iou_losses", "GIoU loss", "Rezatofighi 2019", ("loss", "giou_loss"), {"kind": "giou"},
         training_only=True),
    Swap("iou_losses", "DIoU loss", "Zheng 2020", ("loss", "diou_loss"), {"kind": "diou"},
         training_only=True),
    Swap("iou_losses", "CIoU loss", "Zheng 2020", ("loss", "ciou_loss"), {"kind": "ciou"},
         training_only=True),
    Swap("focal_rpn", "focal loss in the RPN", "Lin 2017", ("loss", "focal_loss"),
         training_only=True),
    Swap("atss", "ATSS matcher", "Zhang 2020", ("matcher", "ATSSMatcher"), training_only=True),
    Swap("ohem", "OHEM sampler", "Shrivastava 2016", ("sampler", "HardExamples"),
         training_only=True),
    Swap("repeat_factor", "repeat-factor sampling", "Gupta 2019", training_only=True),
    Swap("timm_backbone", "MobileNetV3 of timm", "Wightman 2019", ("backbone", "TimmBackbone")),
    Swap("swin", "Swin Transformer", "Liu 2021", ("backbone", "SwinBackbone")),
    Swap("deformable", "deformable convolutions v2", "Zhu 2019", opset=19),
    Swap("group_norm", "group normalisation", "Wu 2018"),
    Swap("panet", "PANet", "Liu 2018"),
    Swap("bifpn", "BiFPN", "Tan 2020"),
    Swap("cascade", "Cascade R-CNN", "Cai 2018"),
    Swap("point_rend", "PointRend-like masks", "Kirillov 2020", ("mask_predictor", "PointRend")),
    Swap("mask_iou", "mask IoU", "Huang 2019"),
    Swap("keypoints", "keypoints", "He 2017"),
    Swap("embeddings", "embedding per detection", "Voigtlaender 2019"),
)  # fmt: skip
