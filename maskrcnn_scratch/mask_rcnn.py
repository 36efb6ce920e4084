"""Mask R-CNN (He et al. 2017): read this file first.

``GeneralizedRCNN`` has the stages in order, ``FasterRCNN`` and ``MaskRCNN`` pick the parts;
``builders.py`` puts them on a ResNet-50.

    image          -> transform      transform.py
    -> backbone, FPN                 backbone/resnet.py, fpn.py
    -> anchors, RPN, proposals       rpn/anchors.py, head.py, proposals.py
    -> RoIAlign, box head, NMS       roi_heads/pooler.py, box_head.py, detections.py
    -> RoIAlign, mask head           roi_heads/pooler.py, mask_head.py
    -> paste                         transform.py, ops/paste_masks.py

Letters: ``N`` images, ``A`` anchors, ``P`` proposal slots, ``D`` detection slots (``structures``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch import interfaces
from maskrcnn_scratch.check_parts import check_parts
from maskrcnn_scratch.conventions import Conventions
from maskrcnn_scratch.roi_heads import (
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    MultiScaleRoIAlign,
    RoIHeads,
    TwoMLPHead,
)
from maskrcnn_scratch.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
from maskrcnn_scratch.structures import ImageList, Result, StageOutputs, Target
from maskrcnn_scratch.training.check_targets import check_targets
from maskrcnn_scratch.transform import GeneralizedRCNNTransform, image_size


class GeneralizedRCNN(nn.Module):
    """A detector in stages: transform, backbone, region proposals, RoI heads.

    Args:
        backbone: see ``interfaces.Backbone``.
        rpn: says where objects may be.
        roi_heads: says what they are, where exactly, and which pixels are theirs.
        transform: makes the batch and brings the results back to the original sizes.

    ``check_target_values = False`` leaves out the one check of ``losses`` that waits for a GPU, for
    a caller who has made it before the targets went there. ``image_dtype`` is what images should
    have where it is not the dtype of the parameters (``inference.optimize``).
    """

    check_target_values = True
    image_dtype: torch.dtype | None = None

    def __init__(
        self,
        backbone: interfaces.Backbone,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
        transform: GeneralizedRCNNTransform,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Result]:
        """The losses in training mode, the detections in eval mode.

        Args:
            images: ``[3, H, W]`` floats in 0-1, sizes may differ.
            targets: one an image, needed in training mode.
        """
        if self.training:
            return self.losses(images, targets)
        return self.detect(images)

    def detect(self, images: Sequence[Tensor]) -> list[Result]:
        """What is in each image, best first, in its own pixels.

        Returns:
            for each image ``boxes`` ``[D, 4]``, ``labels`` ``[D]``, ``scores`` ``[D]`` and
            ``masks`` ``[D, 1, H, W]``, soft in 0-1 (threshold them at 0.5). ``D`` may be 0.
        """
        return self.run_stages(images).results

    def run_stages(self, images: Sequence[Tensor]) -> StageOutputs:
        """Everything ``detect`` computes on its way; ``.results`` is what it returns."""
        batch, _ = self.transform(images)  # [N, 3, H, W] and the sizes inside of the padding
        stages = self.run_batch(batch)
        original_sizes = [image_size(image) for image in images]
        stages.results = self.transform.postprocess(stages.detections, batch.sizes, original_sizes)
        return stages

    def run_batch(self, batch: ImageList) -> StageOutputs:
        """The stages from a padded batch to padded detections: all shapes fixed, no waiting."""
        features = self.extract_features(batch.tensors)  # {"0": [N, 256, H/4, W/4], ..., "pool"}
        rpn = self.rpn(batch, features)  # of each anchor: objectness [N, A], deltas [N, A, 4]
        proposals = self.rpn.propose(rpn, batch.sizes)  # boxes [N, P, 4]
        class_logits, box_regression, detections = self.roi_heads.detect_boxes(
            features, proposals, batch
        )  # [N, P, C], [N, P, C, 4], boxes [N, D, 4]
        if self.roi_heads.has_mask():
            detections.masks = self.roi_heads.detect_masks(features, detections, batch)
        return StageOutputs(
            images=batch,
            features=features,
            anchors=rpn.anchors,
            objectness=rpn.objectness,
            pred_bbox_deltas=rpn.pred_bbox_deltas,
            proposals=proposals,
            class_logits=class_logits,
            box_regression=box_regression,
            detections=detections,
            results=[],
        )

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The five losses, each a scalar; their sum is what training minimises.

        Works in eval mode too, as the validation loss: nothing in the model changes, no random
        number is taken from the global stream, and the same images give the same losses.

        Args:
            images: as in ``forward``.
            targets: one an image: ``boxes`` ``[G, 4]``, ``labels`` ``[G]`` from 1, ``masks``
                ``[G, H, W]``; ``G`` may be 0.
            generator: draws the anchors and proposals that enter the losses; by default the global
                one in training mode and a fresh one in eval mode.

        Raises:
            TypeError, ValueError: targets that make no sense, naming image and object.
        """
        self.transform.check_images(images)
        if generator is None and not self.training:
            generator = torch.Generator(images[0].device).manual_seed(0)
        check_targets(
            targets,
            [(image.shape[-2], image.shape[-1]) for image in images],
            self.roi_heads.num_classes(),
            self.roi_heads.has_mask(),
            self.check_target_values,
        )
        batch, targets = self.transform(images, targets)
        features = self.extract_features(batch.tensors)
        rpn = self.rpn(batch, features)
        proposals = self.rpn.propose(rpn, batch.sizes, phase="training")
        rpn_losses = self.rpn.losses(rpn, targets, generator)
        return {
            **self.roi_heads.losses(features, proposals, batch.padded_size, targets, generator),
            **rpn_losses,
        }

    def extract_features(self, images: Tensor) -> dict[str, Tensor]:
        """``[N, 3, H, W]`` to feature maps by name; a backbone with one map has it under "0".

        Raises:
            ValueError: images of another device or dtype than the backbone's.
        """
        parameter = next(self.parameters(), images)  # the first is the backbone's
        device, dtype = parameter.device, self.image_dtype or parameter.dtype
        if images.device != device or (
            images.dtype != dtype and not torch.is_autocast_enabled(device.type)
        ):
            raise ValueError(
                f"the images are {images.dtype} on {images.device}, the model wants {dtype} on "
                f"{device}: convert one of them"
            )
        features = self.backbone(images)
        return {"0": features} if isinstance(features, Tensor) else features


class FasterRCNN(GeneralizedRCNN):
    """Faster R-CNN on any backbone; every part can be given, and has torchvision's default.

    Args:
        backbone: gives feature maps by name and has ``out_channels``.
        num_classes: with the background; None where the predictors are given.
        min_size, max_size, image_mean, image_std: see ``GeneralizedRCNNTransform``.
        rpn_anchor_generator: by default one size a level, 32 to 512, and three shapes.
        rpn_head: by default ``RPNHead``.
        rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test: candidates of each level before NMS.
        rpn_post_nms_top_n_train, rpn_post_nms_top_n_test: proposals of each image after it.
        rpn_nms_thresh, rpn_fg_iou_thresh, rpn_bg_iou_thresh, rpn_batch_size_per_image,
        rpn_positive_fraction, rpn_score_thresh: see ``RegionProposalNetwork``.
        box_roi_pool: by default 7 x 7 from the maps "0" to "3".
        box_head, box_predictor: by default ``TwoMLPHead`` and ``FastRCNNPredictor``.
        box_score_thresh, box_nms_thresh, box_detections_per_img, box_fg_iou_thresh,
        box_bg_iou_thresh, box_batch_size_per_image, box_positive_fraction, bbox_reg_weights: see
            ``RoIHeads``.
        mask_roi_pool, mask_head, mask_predictor: a mask branch; see ``MaskRCNN``.
        conventions: of the default parts, where libraries differ.
        **kwargs: to ``GeneralizedRCNNTransform``: ``size_divisible``, ``fixed_size``, ``paste``.

    Raises:
        ValueError: parts that do not fit together.
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
        conventions: Conventions = Conventions.torchvision(),  # noqa: B008, it is immutable
        **kwargs: Any,
    ) -> None:
        classes = _number_of_classes(num_classes, "box_predictor", box_predictor)
        channels = _out_channels(backbone)

        if rpn_anchor_generator is None:
            rpn_anchor_generator = AnchorGenerator(
                sizes=((32,), (64,), (128,), (256,), (512,)),
                aspect_ratios=(0.5, 1.0, 2.0),
                strides=conventions.anchor_strides,
                rounded=conventions.round_anchors,
            )
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
        )

        if box_roi_pool is None:
            box_roi_pool = _roi_pool(7, conventions)
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
        )

        transform = GeneralizedRCNNTransform(
            min_size,
            max_size,
            conventions.image_mean if image_mean is None else image_mean,
            conventions.image_std if image_std is None else image_std,
            **{"paste": conventions.paste, **kwargs},
        )
        super().__init__(backbone, rpn, roi_heads, transform)
        check_parts(self)


class MaskRCNN(FasterRCNN):
    """Faster R-CNN with a third branch, which draws a mask of each detection (section 3).

    Args:
        backbone, num_classes: as of ``FasterRCNN``.
        *args, **kwargs: to ``FasterRCNN``, all of its arguments.
        mask_roi_pool: by default 14 x 14 from the maps "0" to "3".
        mask_head, mask_predictor: by default ``MaskRCNNHeads`` and ``MaskRCNNPredictor``.
        conventions: of the default parts, where libraries differ.

    Raises:
        ValueError: parts that do not fit together.
    """

    def __init__(
        self,
        backbone: interfaces.Backbone,
        num_classes: int | None = None,
        *args: Any,
        mask_roi_pool: interfaces.RoIPooler | None = None,
        mask_head: interfaces.MaskHead | None = None,
        mask_predictor: interfaces.MaskPredictor | None = None,
        conventions: Conventions = Conventions.torchvision(),  # noqa: B008, it is immutable
        **kwargs: Any,
    ) -> None:
        classes = _number_of_classes(num_classes, "mask_predictor", mask_predictor)
        if mask_roi_pool is None:
            mask_roi_pool = _roi_pool(14, conventions, channels_last=True)
        if mask_head is None:
            mask_head = MaskRCNNHeads(_out_channels(backbone), (256, 256, 256, 256), dilation=1)
        if mask_predictor is None:
            mask_predictor = MaskRCNNPredictor(256, 256, classes)
        super().__init__(  # type: ignore[misc]  # args end before the three
            backbone,
            num_classes,
            *args,
            mask_roi_pool=mask_roi_pool,
            mask_head=mask_head,
            mask_predictor=mask_predictor,
            conventions=conventions,
            **kwargs,
        )


def _roi_pool(
    output_size: int, conventions: Conventions, channels_last: bool = False
) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(
        ("0", "1", "2", "3"),
        output_size,
        conventions.sampling_ratio,
        aligned=conventions.roi_aligned,
        channels_last=channels_last,
    )


def _out_channels(backbone: interfaces.Backbone) -> int:
    if not hasattr(backbone, "out_channels"):
        raise ValueError(
            "backbone has no attribute out_channels: set it to the number of channels of its "
            "feature maps (the same for all of them)"
        )
    return backbone.out_channels


def _number_of_classes(num_classes: int | None, name: str, predictor: object) -> int:
    """Of the predictor to build; 0 if one is given. Raises a ValueError if both or neither are."""
    if (num_classes is None) == (predictor is None):
        raise ValueError(
            f"give either num_classes or {name}: num_classes is {num_classes}, "
            f"{name} is {'missing' if predictor is None else 'given'}"
        )
    if num_classes is not None and num_classes < 2:
        raise ValueError(
            f"num_classes is {num_classes}: it counts the background, so that one class of objects "
            "makes it 2"
        )
    return num_classes or 0
