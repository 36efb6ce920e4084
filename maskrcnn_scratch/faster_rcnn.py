"""Faster R-CNN (Ren et al. 2015): the parts it consists of, and their defaults.

``mask_rcnn.py`` adds the mask branch; ``builders/resnet50_fpn.py`` builds both on a ResNet-50.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor

from maskrcnn_scratch import interfaces, stage_interfaces
from maskrcnn_scratch.check_parts import check_parts, check_replaced_parts
from maskrcnn_scratch.conventions import Conventions
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.roi_heads import (
    FastRCNNPredictor,
    MultiScaleRoIAlign,
    RoIHeads,
    TwoMLPHead,
)
from maskrcnn_scratch.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
from maskrcnn_scratch.structures import StageOutputs, Target
from maskrcnn_scratch.transform import GeneralizedRCNNTransform


class FasterRCNN(GeneralizedRCNN):
    """Faster R-CNN on any backbone. Every part is an argument, with torchvision's default.

    Args:
        backbone: see ``interfaces.Backbone``.
        num_classes: background included; None if the predictors are passed in.
        min_size, max_size, image_mean, image_std: see ``GeneralizedRCNNTransform``.
        rpn_anchor_generator: by default one size per level, 32 to 512 pixels, and three aspect
            ratios.
        rpn_head: by default ``RPNHead``.
        rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test: candidates per level before NMS.
        rpn_post_nms_top_n_train, rpn_post_nms_top_n_test: proposals per image after NMS.
        rpn_nms_thresh, rpn_fg_iou_thresh, rpn_bg_iou_thresh: see ``RegionProposalNetwork``.
        rpn_batch_size_per_image, rpn_positive_fraction, rpn_score_thresh: likewise.
        box_roi_pool: by default 7 x 7 from the levels "0" to "3".
        box_head, box_predictor: by default ``TwoMLPHead`` and ``FastRCNNPredictor``.
        box_score_thresh, box_nms_thresh, box_detections_per_img: see ``RoIHeads``.
        box_fg_iou_thresh, box_bg_iou_thresh, box_batch_size_per_image: likewise.
        box_positive_fraction, bbox_reg_weights: likewise.
        mask_roi_pool, mask_head, mask_predictor: a mask branch; see ``MaskRCNN``.
        rpn_box_coder, rpn_nms, rpn_proposal_matcher, rpn_fg_bg_sampler: parts of the RPN; by
            default those of ``RegionProposalNetwork``.
        rpn_loss_objectness, rpn_loss_box_reg: likewise.
        box_coder, box_nms, box_proposal_matcher, box_fg_bg_sampler: parts of the RoI heads; by
            default those of ``RoIHeads``.
        box_loss_classifier, box_loss_box_reg, mask_loss: likewise.
        branches: further branches of the RoI heads by name; see ``stage_interfaces.Branch``.
        refine: moves the proposals before the box head; see ``stage_interfaces.Refine``.
        rpn, roi_heads, transform: a whole stage, see ``stage_interfaces``; then none of the
            arguments that describe its parts may be given. ``roi_heads`` replaces ``num_classes``.
        conventions: for the default parts; see ``Conventions``.
        **kwargs: for ``GeneralizedRCNNTransform``: ``size_divisible``, ``fixed_size``, ``paste``.

    Raises:
        ValueError: parts that do not fit together, or a stage together with parts of it.
    """

    def __init__(
        self,
        backbone: interfaces.Backbone,
        num_classes: int | None = None,
        # transform
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        # RPN
        rpn_anchor_generator: interfaces.AnchorGenerator | None = None,
        rpn_head: interfaces.RPNHead | None = None,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_fg_iou_thresh: float = 0.7,
        rpn_bg_iou_thresh: float = 0.3,
        rpn_batch_size_per_image: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_score_thresh: float = 0.0,
        # boxes
        box_roi_pool: interfaces.RoIPooler | None = None,
        box_head: interfaces.BoxHead | None = None,
        box_predictor: interfaces.BoxPredictor | None = None,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_fg_iou_thresh: float = 0.5,
        box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 512,
        box_positive_fraction: float = 0.25,
        bbox_reg_weights: tuple[float, float, float, float] | None = None,
        # masks
        mask_roi_pool: interfaces.RoIPooler | None = None,
        mask_head: interfaces.MaskHead | None = None,
        mask_predictor: interfaces.MaskPredictor | None = None,
        *,
        # parts of the stages
        rpn_box_coder: interfaces.BoxCoder | None = None,
        rpn_nms: interfaces.NMS | None = None,
        rpn_proposal_matcher: interfaces.Matcher | None = None,
        rpn_fg_bg_sampler: interfaces.Sampler | None = None,
        rpn_loss_objectness: interfaces.Loss | None = None,
        rpn_loss_box_reg: interfaces.Loss | None = None,
        box_coder: interfaces.BoxCoder | None = None,
        box_nms: interfaces.NMS | None = None,
        box_proposal_matcher: interfaces.Matcher | None = None,
        box_fg_bg_sampler: interfaces.Sampler | None = None,
        box_loss_classifier: interfaces.Loss | None = None,
        box_loss_box_reg: interfaces.Loss | None = None,
        mask_loss: interfaces.Loss | None = None,
        branches: Mapping[str, stage_interfaces.Branch] | None = None,
        refine: stage_interfaces.Refine | None = None,
        # whole stages
        rpn: stage_interfaces.RPN | None = None,
        roi_heads: stage_interfaces.SecondStage | None = None,
        transform: stage_interfaces.Transform | None = None,
        conventions: Conventions = Conventions.torchvision(),  # noqa: B008, it is immutable
        **kwargs: Any,
    ) -> None:
        given = {**locals(), **kwargs}
        channels = out_channels_of(backbone)

        if rpn is not None:
            refuse_parts_of("rpn", given)
        else:
            if rpn_anchor_generator is None:
                rpn_anchor_generator = default_anchor_generator(conventions)
            check_anchor_order(rpn_anchor_generator, conventions)
            if rpn_head is None:
                rpn_head = RPNHead(channels, rpn_anchor_generator.num_anchors_per_location()[0])
            rpn = RegionProposalNetwork(
                rpn_anchor_generator,
                rpn_head,
                rpn_fg_iou_thresh,
                rpn_bg_iou_thresh,
                rpn_batch_size_per_image,
                rpn_positive_fraction,
                {"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
                {"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
                rpn_nms_thresh,
                rpn_score_thresh,
                **those_given(
                    box_coder=rpn_box_coder,
                    nms=rpn_nms,
                    proposal_matcher=rpn_proposal_matcher,
                    fg_bg_sampler=rpn_fg_bg_sampler,
                    loss_objectness=rpn_loss_objectness,
                    loss_rpn_box_reg=rpn_loss_box_reg,
                ),
            )

        if roi_heads is not None:
            refuse_parts_of("roi_heads", given)
        else:
            classes = number_of_classes(num_classes, "box_predictor", box_predictor)
            if box_roi_pool is None:
                box_roi_pool = default_roi_pool(7, conventions)
            if box_head is None:
                box_head = TwoMLPHead(channels * box_roi_pool.output_size[0] ** 2, 1024)
            if box_predictor is None:
                box_predictor = FastRCNNPredictor(1024, classes)
            roi_heads = RoIHeads(
                box_roi_pool,
                box_head,
                box_predictor,
                box_fg_iou_thresh,
                box_bg_iou_thresh,
                box_batch_size_per_image,
                box_positive_fraction,
                bbox_reg_weights,
                box_score_thresh,
                box_nms_thresh,
                box_detections_per_img,
                mask_roi_pool,
                mask_head,
                mask_predictor,
                **those_given(
                    box_coder=box_coder,
                    nms=box_nms,
                    proposal_matcher=box_proposal_matcher,
                    fg_bg_sampler=box_fg_bg_sampler,
                    loss_classifier=box_loss_classifier,
                    loss_box_reg=box_loss_box_reg,
                    loss_mask=mask_loss,
                    branches=branches,
                    refine=refine,
                ),
            )

        if transform is not None:
            refuse_parts_of("transform", given)
        else:
            transform = GeneralizedRCNNTransform(
                min_size,
                max_size,
                conventions.image_mean if image_mean is None else image_mean,
                conventions.image_std if image_std is None else image_std,
                **{"paste": conventions.paste, **kwargs},
            )
        # The attributes have the types of the default stages, whose settings most code reads.
        super().__init__(backbone, cast(Any, rpn), cast(Any, roi_heads), cast(Any, transform))
        check_parts(self)

    def run_stages(self, images: Sequence[Tensor]) -> StageOutputs:
        check_replaced_parts(self)
        return super().run_stages(images)

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        check_replaced_parts(self)
        return super().losses(images, targets, generator)


def those_given(**parts: Any) -> dict[str, Any]:
    """``parts`` without those that are None, for which the stage has a default."""
    return {name: part for name, part in parts.items() if part is not None}


def refuse_parts_of(stage: str, given: Mapping[str, Any]) -> None:
    """Raises a ValueError if an argument is given that describes a part of ``stage``.

    Args:
        stage: ``"rpn"``, ``"roi_heads"`` or ``"transform"``, which is passed in whole.
        given: all arguments of ``FasterRCNN``.
    """
    parameters = signature(FasterRCNN.__init__).parameters
    transform_arguments = signature(GeneralizedRCNNTransform.__init__).parameters
    for name, value in given.items():
        if stage == "transform":
            belongs = name in transform_arguments and name != "self"
        elif stage == "rpn":
            belongs = name.startswith("rpn_")
        else:
            own = ("box_", "bbox_", "mask_", "num_classes", "branches", "refine")
            belongs = name.startswith(own)
        default = parameters[name].default if name in parameters else None
        if belongs and value is not default and value != default:
            raise ValueError(f"{stage} is passed in whole: {name} must be set there, not here")


def default_anchor_generator(conventions: Conventions) -> AnchorGenerator:
    """One size per level, 32 to 512 pixels, and three aspect ratios."""
    return AnchorGenerator(
        sizes=((32,), (64,), (128,), (256,), (512,)),
        aspect_ratios=(0.5, 1.0, 2.0),
        strides=conventions.anchor_strides,
        rounded=conventions.round_anchors,
        ratios_fastest=conventions.ratios_fastest,
    )


def check_anchor_order(
    anchor_generator: interfaces.AnchorGenerator, conventions: Conventions
) -> None:
    """Raises a ValueError if an ``AnchorGenerator`` has another order than the weights expect."""
    if not isinstance(anchor_generator, AnchorGenerator):
        return
    several = any(
        len(sizes) > 1 and len(ratios) > 1
        for sizes, ratios in zip(
            anchor_generator.sizes, anchor_generator.aspect_ratios, strict=True
        )
    )
    if several and anchor_generator.ratios_fastest != conventions.ratios_fastest:
        raise ValueError(
            "the anchor generator has several sizes per level in another order than the "
            f"conventions: give AnchorGenerator(..., ratios_fastest={conventions.ratios_fastest})"
        )


def default_roi_pool(
    output_size: int, conventions: Conventions, channels_last: bool = False
) -> MultiScaleRoIAlign:
    """Pools ``[R, F, output_size, output_size]`` from the levels "0" to "3"."""
    return MultiScaleRoIAlign(
        ("0", "1", "2", "3"),
        output_size,
        conventions.sampling_ratio,
        aligned=conventions.roi_aligned,
        channels_last=channels_last,
    )


def out_channels_of(backbone: interfaces.Backbone) -> int:
    """Channels of the feature maps; raises a ValueError if the backbone does not say."""
    if not hasattr(backbone, "out_channels"):
        raise ValueError(
            "the backbone has no attribute out_channels: set it to the number of channels of its "
            "feature maps (the same for all of them)"
        )
    return backbone.out_channels


def number_of_classes(num_classes: int | None, name: str, predictor: object) -> int:
    """Classes of the predictor to build, background included; 0 if a predictor is passed in.

    Raises:
        ValueError: both or neither of ``num_classes`` and ``predictor`` are given, or there are
            fewer than two classes.
    """
    if (num_classes is None) == (predictor is None):
        raise ValueError(
            f"pass either num_classes or {name}: num_classes is {num_classes}, "
            f"{name} is {'missing' if predictor is None else 'given'}"
        )
    if num_classes is not None and num_classes < 2:
        raise ValueError(
            f"num_classes is {num_classes}: it includes the background, so that one class of "
            "objects needs num_classes=2"
        )
    return num_classes or 0
