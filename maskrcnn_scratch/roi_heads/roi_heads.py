"""The second stage: classes and boxes for the proposals, then masks for the detections.

Mask R-CNN, section 3; the box branch is that of Fast R-CNN, section 2. Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from maskrcnn_scratch import losses
from maskrcnn_scratch.call_part import asks_for, with_context
from maskrcnn_scratch.host_sync import compute_valid
from maskrcnn_scratch.interfaces import (
    NMS,
    BoxCoder,
    BoxHead,
    BoxPredictor,
    Loss,
    MaskHead,
    MaskPredictor,
    Matcher,
    RoIPooler,
    Sampler,
)
from maskrcnn_scratch.ops import batched_nms_padded
from maskrcnn_scratch.ops.boxes import BoxCoder as DeltaBoxCoder
from maskrcnn_scratch.roi_heads.branches import Branches, check_names
from maskrcnn_scratch.roi_heads.detections import select_detections
from maskrcnn_scratch.roi_heads.stage import RoIHeadsStage
from maskrcnn_scratch.stage_interfaces import Branch, Refine
from maskrcnn_scratch.structures import (
    IGNORE_LABEL,
    Detections,
    ImageList,
    Proposals,
    Target,
    at_least_float32,
    boxes_to_rois,
    list_to_rois,
    of_classes,
)
from maskrcnn_scratch.targets.matcher import Matcher as IoUMatcher
from maskrcnn_scratch.targets.roi_targets import (
    has_mask_target,
    project_masks_on_boxes,
    select_training_samples,
)
from maskrcnn_scratch.targets.sampler import BalancedPositiveNegativeSampler, with_generator


class RoIHeads(RoIHeadsStage, Branches, nn.Module):
    """Classifies the proposals, refines their boxes and predicts a mask for each detection.

    Called as a stage, it has torchvision's interface: see ``stage``.

    Args:
        box_roi_pool, box_head, box_predictor: see ``interfaces``.
        fg_iou_thresh: proposals with at least this IoU with an object are foreground in training.
        bg_iou_thresh: proposals below this IoU are background; those between are ignored.
        batch_size_per_image: proposals sampled per image for the losses.
        positive_fraction: the largest fraction of them that is foreground.
        bbox_reg_weights: of dx, dy, dw, dh in the default box coder; (10, 10, 5, 5) by default.
        score_thresh: boxes whose score does not exceed this are dropped.
        nms_thresh: IoU above which the lower-scoring one of two boxes of a class is suppressed.
        detections_per_img: the most detections per image, ``D``.
        mask_roi_pool, mask_head, mask_predictor: see ``interfaces``; None for no mask branch.
        box_coder, nms, proposal_matcher, fg_bg_sampler: replacements for the defaults; see
            ``interfaces``.
        loss_classifier, loss_box_reg, loss_mask: replacements for those in ``losses``; see
            ``interfaces.Loss``.
        branches: further branches by name, modules; see ``stage_interfaces.Branch``.
        refine: moves the proposals first, a module; see ``stage_interfaces.Refine``.
    """

    min_size = 1e-2  # pixels; detections with a shorter side are dropped

    def __init__(
        self,
        box_roi_pool: RoIPooler,
        box_head: BoxHead,
        box_predictor: BoxPredictor,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        bbox_reg_weights: tuple[float, float, float, float] | None,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        mask_roi_pool: RoIPooler | None = None,
        mask_head: MaskHead | None = None,
        mask_predictor: MaskPredictor | None = None,
        *,
        box_coder: BoxCoder | None = None,
        nms: NMS = batched_nms_padded,
        proposal_matcher: Matcher | None = None,
        fg_bg_sampler: Sampler | None = None,
        loss_classifier: Loss = losses.loss_classifier,
        loss_box_reg: Loss = losses.loss_box_reg,
        loss_mask: Loss = losses.loss_mask,
        branches: Mapping[str, Branch] | None = None,
        refine: Refine | None = None,
    ) -> None:
        super().__init__()
        self.box_roi_pool = box_roi_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_roi_pool = mask_roi_pool
        self.mask_head = mask_head
        self.mask_predictor = mask_predictor
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.box_coder = box_coder or DeltaBoxCoder(bbox_reg_weights or (10.0, 10.0, 5.0, 5.0))
        self.nms = nms
        self.proposal_matcher = proposal_matcher or IoUMatcher(fg_iou_thresh, bg_iou_thresh)
        self.fg_bg_sampler = fg_bg_sampler or BalancedPositiveNegativeSampler(
            batch_size_per_image, positive_fraction
        )
        self.loss_classifier = loss_classifier
        self.loss_box_reg = loss_box_reg
        self.loss_mask = loss_mask
        self.branches = nn.ModuleDict(branches)  # type: ignore[arg-type]  # modules that fit it
        self.refine = refine

    def has_mask(self) -> bool:
        """Whether the model has a mask branch."""
        parts = (self.mask_roi_pool, self.mask_head, self.mask_predictor)
        return all(part is not None for part in parts)

    def num_classes(self) -> int | None:
        """``C``, if the box predictor is torchvision's or has its names; else None."""
        layer = getattr(self.box_predictor, "cls_score", None)
        return getattr(layer, "out_features", None)

    def predict_boxes(
        self, features: Mapping[str, Tensor], rois: Tensor, padded_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Class logits ``[R, C]`` and box deltas ``[R, C * 4]`` or ``[R, 4]`` of ``rois [R, 5]``.

        Args:
            features: ``[N, F, H_l, W_l]`` by name.
            rois: (image index, x1, y1, x2, y2).
            padded_size: (height, width) of the batch.
        """
        pooled = self.box_roi_pool(features, rois, [padded_size])  # [R, F, S, S], S = 7
        class_logits, box_regression = self.box_predictor(self.box_head(pooled))
        return at_least_float32(class_logits), at_least_float32(box_regression)

    def predict_masks(
        self, features: Mapping[str, Tensor], rois: Tensor, padded_size: tuple[int, int]
    ) -> Tensor:
        """Mask logits ``[R, C, M, M]`` of ``rois [R, 5]``; ``[R, 1, M, M]`` if class-agnostic."""
        assert self.mask_predictor is not None
        hidden = self.mask_features(features, rois, padded_size)
        return at_least_float32(self.mask_predictor(hidden))

    def mask_features(
        self, features: Mapping[str, Tensor], rois: Tensor, padded_size: tuple[int, int]
    ) -> Tensor:
        """The mask predictor's input for ``rois [R, 5]``: ``[R, 256, S, S]``, S = 14."""
        assert self.mask_roi_pool is not None
        assert self.mask_head is not None
        return self.mask_head(self.mask_roi_pool(features, rois, [padded_size]))

    def predict_masks_of_labels(
        self,
        features: Mapping[str, Tensor],
        rois: Tensor,
        labels: Tensor,
        padded_size: tuple[int, int],
    ) -> Tensor:
        """Mask logits ``[R, M, M]`` of ``rois [R, 5]``, for the class ``labels [R]`` of each."""
        assert self.mask_predictor is not None
        hidden = self.mask_features(features, rois, padded_size)  # [R, 256, S, S]
        if accepts_labels(self.mask_predictor):
            return at_least_float32(
                self.mask_predictor(hidden, labels)  # type: ignore[call-arg]
            )
        # Not len(labels), which would fix the number of images in an exported graph.
        each = torch.arange(labels.shape[0], device=labels.device)
        return at_least_float32(of_classes(self.mask_predictor(hidden), each, labels))

    def detect_boxes(
        self, features: Mapping[str, Tensor], proposals: Proposals, images: ImageList
    ) -> tuple[Tensor, Tensor, Detections]:
        """Class logits ``[N, P, C]``, box deltas ``[N, P, C, 4]``, and the detections from them.

        The deltas of a class-agnostic predictor are ``[N, P, 1, 4]``. ``P`` may be 0. With
        ``refine`` they are relative to the refined proposals.
        """
        if self.refine is not None:
            proposals = self.refine(features, proposals, images.padded_size)
        by_image = proposals.scores.shape  # [N, P]
        rois = boxes_to_rois(proposals.boxes)  # [N * P, 5]
        class_logits, box_regression = self.predict_boxes(features, rois, images.padded_size)
        # Explicit sizes: without proposals none of them can be inferred.
        class_logits = class_logits.reshape(*by_image, class_logits.shape[1])  # [N, P, C]
        box_regression = box_regression.reshape(*by_image, box_regression.shape[1] // 4, 4)
        detections = self.select_detections(class_logits, box_regression, proposals, images.sizes)
        return class_logits, box_regression, detections

    def select_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: Proposals,
        image_sizes: Tensor,
    ) -> Detections:
        """``detections.select_detections`` with the thresholds of this module."""
        return select_detections(
            class_logits,
            box_regression,
            proposals,
            image_sizes,
            score_thresh=self.score_thresh,
            nms_thresh=self.nms_thresh,
            detections_per_img=self.detections_per_img,
            min_size=self.min_size,
            box_coder=self.box_coder,
            nms=self.nms,
        )

    def detect_masks(
        self, features: Mapping[str, Tensor], detections: Detections, images: ImageList
    ) -> Tensor:
        """Mask probabilities ``[N, D, 1, M, M]`` for the label of each detection (section 3).

        In inference the mask head runs on the detections, not on the proposals. Padding is zero.
        """

        def predict(rois: Tensor, labels: Tensor) -> Tensor:  # [R, 5], [R] -> [R, M, M]
            return self.predict_masks_of_labels(
                features, rois, labels, images.padded_size
            ).sigmoid()

        masks = compute_valid(
            predict,
            detections.valid.flatten(),
            boxes_to_rois(detections.boxes),
            detections.labels.flatten(),
        )  # [N * D, M, M]
        return masks.reshape(*detections.labels.shape, 1, *masks.shape[1:])

    def losses(
        self,
        features: Mapping[str, Tensor],
        proposals: Proposals,
        padded_size: tuple[int, int],
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """``loss_classifier``, ``loss_box_reg``, ``loss_mask``: L_cls + L_box + L_mask (section 3).

        And the losses of ``refine`` and of further branches.

        Args:
            features: ``[N, F, H_l, W_l]`` by name.
            proposals: from the RPN.
            padded_size: (height, width) of the batch.
            targets: one per image; boxes and masks in the pixels of the resized images.
            generator: source of random numbers for the sampler; the global one by default.
        """
        others: dict[str, Tensor] = {}
        if self.refine is not None:
            others, proposals = self.refine.losses(
                features, proposals, padded_size, targets, generator
            )
        samples = select_training_samples(
            proposals,
            targets,
            self.proposal_matcher,
            with_generator(self.fg_bg_sampler, generator),
            self.box_coder,
            lambda boxes: self.predict_boxes(features, list_to_rois(boxes), padded_size)[0],
        )
        rois = list_to_rois(samples.proposals)  # [R, 5]
        labels = torch.cat(samples.labels)  # [R]
        regression_targets = torch.cat(samples.regression_targets)  # [R, 4]
        class_logits, box_regression = self.predict_boxes(features, rois, padded_size)
        context = {"proposals": rois[:, 1:], "box_coder": self.box_coder}
        loss_classifier = with_context(self.loss_classifier, **context)
        loss_box_reg = with_context(self.loss_box_reg, **context)
        found = {
            "loss_classifier": loss_classifier(class_logits, labels),
            "loss_box_reg": loss_box_reg(box_regression, labels, regression_targets),
        }
        mask_logits = None
        if self.has_mask():
            objects = samples.of_objects()
            rois = list_to_rois(objects[0])  # [R, 5]
            mask_logits = self.predict_masks(features, rois, padded_size)  # [R, C, M, M]
            found["loss_mask"] = self.compute_mask_loss(mask_logits, rois, objects, targets)
        check_names("refine returns losses", others, found)
        found |= others
        others = self.branch_losses(features, samples, targets, padded_size, mask_logits)
        check_names("a branch returns losses", others, found)
        return {**found, **others}

    def compute_mask_loss(
        self,
        mask_logits: Tensor,
        rois: Tensor,
        objects: tuple[list[Tensor], list[Tensor], Tensor],
        targets: Sequence[Target],
    ) -> Tensor:
        """L_mask: only the sampled objects have a mask loss, and only the mask of their class.

        Objects for which a target's ``has_mask`` is false take no part.

        Args:
            mask_logits: ``[R, C, M, M]`` of the sampled objects.
            rois: ``[R, 5]``, their proposals.
            objects: ``TrainingSamples.of_objects``.
        """
        boxes, matched_idxs, labels = objects
        if any("has_mask" in target for target in targets):
            labels = labels.where(has_mask_target(targets, matched_idxs), IGNORE_LABEL)
        mask_targets = [
            project_masks_on_boxes(
                target["masks"],
                boxes_in_image,
                matched_in_image,
                discretization_size=mask_logits.shape[-1],
                aligned=getattr(self.mask_roi_pool, "aligned", False),
            )
            for target, boxes_in_image, matched_in_image in zip(
                targets, boxes, matched_idxs, strict=True
            )
        ]  # [R_n, M, M] per image
        loss_mask = with_context(self.loss_mask, proposals=rois[:, 1:], box_coder=self.box_coder)
        return loss_mask(mask_logits, labels, torch.cat(mask_targets))


def accepts_labels(mask_predictor: MaskPredictor) -> bool:
    """Whether it can predict the masks of given labels only; see ``interfaces.MaskPredictor``."""
    return asks_for(mask_predictor, "labels")
