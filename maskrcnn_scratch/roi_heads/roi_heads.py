"""The second stage: boxes and classes for the proposals, then masks for the detections.

Letters: ``N`` images, ``P`` proposal slots, ``D`` detection slots, ``R`` RoIs, ``C`` classes with
the background, ``M`` mask side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature

import torch
from torch import Tensor, nn

from maskrcnn_scratch import losses
from maskrcnn_scratch.host_sync import entries_to_compute
from maskrcnn_scratch.interfaces import (
    NMS,
    BoxHead,
    BoxPredictor,
    MaskHead,
    MaskPredictor,
    Matcher,
    RoIPooler,
    Sampler,
)
from maskrcnn_scratch.ops import batched_nms_padded
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.roi_heads.detections import select_detections
from maskrcnn_scratch.structures import (
    Detections,
    ImageList,
    Proposals,
    Target,
    at_least_float32,
    boxes_to_rois,
    list_to_rois,
)
from maskrcnn_scratch.targets.matcher import Matcher as IoUMatcher
from maskrcnn_scratch.targets.roi_targets import project_masks_on_boxes, select_training_samples
from maskrcnn_scratch.targets.sampler import BalancedPositiveNegativeSampler


class RoIHeads(nn.Module):
    """Classifies and refines the proposals, and draws a mask of each detection.

    Args:
        box_roi_pool, box_head, box_predictor: see ``interfaces``.
        fg_iou_thresh: proposals with at least this IoU with an object count as it in training.
        bg_iou_thresh: those below this are background; the ones between are left out.
        batch_size_per_image: proposals sampled for the loss.
        positive_fraction: the largest part of them that is positive.
        bbox_reg_weights: of dx, dy, dw, dh; (10, 10, 5, 5) by default.
        score_thresh: scores of detections exceed this.
        nms_thresh: IoU above which the worse of two boxes of a class is dropped.
        detections_per_img: the most detections of an image.
        mask_roi_pool, mask_head, mask_predictor: see ``interfaces``; None for boxes alone.
        nms, proposal_matcher, fg_bg_sampler: to swap one of these.
        loss_classifier, loss_box_reg, loss_mask: see ``training.losses``.
    """

    min_size = 1e-2  # pixels; detections with a smaller side are dropped

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
        nms: NMS = batched_nms_padded,
        proposal_matcher: Matcher | None = None,
        fg_bg_sampler: Sampler | None = None,
        loss_classifier: Callable[..., Tensor] = losses.loss_classifier,
        loss_box_reg: Callable[..., Tensor] = losses.loss_box_reg,
        loss_mask: Callable[..., Tensor] = losses.loss_mask,
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
        self.box_coder = BoxCoder(bbox_reg_weights or (10.0, 10.0, 5.0, 5.0))
        self.nms = nms
        self.proposal_matcher = proposal_matcher or IoUMatcher(fg_iou_thresh, bg_iou_thresh)
        self.fg_bg_sampler = fg_bg_sampler or BalancedPositiveNegativeSampler(
            batch_size_per_image, positive_fraction
        )
        self.loss_classifier = loss_classifier
        self.loss_box_reg = loss_box_reg
        self.loss_mask = loss_mask

    def has_mask(self) -> bool:
        """Whether there is a mask branch."""
        parts = (self.mask_roi_pool, self.mask_head, self.mask_predictor)
        return all(part is not None for part in parts)

    def num_classes(self) -> int | None:
        """Classes that the box predictor tells apart, the background included, if it says so."""
        layer = getattr(self.box_predictor, "cls_score", None)
        return getattr(layer, "out_features", None)

    def predict_boxes(
        self, features: Mapping[str, Tensor], rois: Tensor, image_shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Class logits ``[R, C]`` and box offsets ``[R, 4 * C]`` of ``rois [R, 5]``.

        Args:
            image_shape: padded (height, width) of the batch.
        """
        pooled = self.box_roi_pool(features, rois, [image_shape])  # [R, channels, 7, 7]
        class_logits, box_regression = self.box_predictor(self.box_head(pooled))
        return at_least_float32(class_logits), at_least_float32(box_regression)

    def predict_masks(
        self, features: Mapping[str, Tensor], rois: Tensor, image_shape: tuple[int, int]
    ) -> Tensor:
        """Mask logits ``[R, C, M, M]`` of ``rois [R, 5]``, one mask for each class."""
        assert self.mask_predictor is not None
        hidden = self.mask_features(features, rois, image_shape)
        return at_least_float32(self.mask_predictor(hidden))

    def mask_features(
        self, features: Mapping[str, Tensor], rois: Tensor, image_shape: tuple[int, int]
    ) -> Tensor:
        """What the mask predictor sees of ``rois [R, 5]``: ``[R, channels, 14, 14]``."""
        assert self.mask_roi_pool is not None
        assert self.mask_head is not None
        return self.mask_head(self.mask_roi_pool(features, rois, [image_shape]))

    def predict_own_masks(
        self,
        features: Mapping[str, Tensor],
        rois: Tensor,
        labels: Tensor,
        image_shape: tuple[int, int],
    ) -> Tensor:
        """Mask logits ``[R, M, M]`` of ``rois [R, 5]`` for the class ``labels [R]`` of each."""
        assert self.mask_predictor is not None
        hidden = self.mask_features(features, rois, image_shape)
        if takes_labels(self.mask_predictor):
            return at_least_float32(
                self.mask_predictor(hidden, labels)  # type: ignore[call-arg]
            )
        # Not len(labels), which would fix the number of images in an exported graph.
        each = torch.arange(labels.shape[0], device=labels.device)
        return at_least_float32(self.mask_predictor(hidden)[each, labels])

    def detect_boxes(
        self, features: Mapping[str, Tensor], proposals: Proposals, images: ImageList
    ) -> tuple[Tensor, Tensor, Detections]:
        """Class logits ``[N, P, C]``, offsets ``[N, P, C, 4]`` and what is kept of them."""
        slots = proposals.scores.shape  # [N, P]
        rois = boxes_to_rois(proposals.boxes)  # [N * P, 5]
        class_logits, box_regression = self.predict_boxes(features, rois, images.padded_size)
        class_logits = class_logits.reshape(*slots, -1)
        box_regression = box_regression.reshape(*slots, -1, 4)
        detections = select_detections(
            class_logits,
            box_regression,
            proposals,
            images.sizes,
            score_thresh=self.score_thresh,
            nms_thresh=self.nms_thresh,
            detections_per_img=self.detections_per_img,
            min_size=self.min_size,
            box_coder=self.box_coder,
            nms=self.nms,
        )
        return class_logits, box_regression, detections

    def detect_masks(
        self, features: Mapping[str, Tensor], detections: Detections, images: ImageList
    ) -> Tensor:
        """Mask probabilities ``[N, D, 1, M, M]`` of the detections' own classes."""
        slots = entries_to_compute(detections.valid.flatten())  # [R]
        rois = boxes_to_rois(detections.boxes)[slots]
        labels = detections.labels.flatten()[slots]
        own = self.predict_own_masks(features, rois, labels, images.padded_size).sigmoid()
        own = own.masked_fill((labels == 0)[:, None, None], 0)  # [R, M, M], empty slots are zero
        masks = own.new_zeros((detections.labels.numel(), *own.shape[1:]))
        return masks.index_copy(0, slots, own).reshape(*detections.labels.shape, 1, *own.shape[1:])

    def losses(
        self,
        features: Mapping[str, Tensor],
        proposals: Proposals,
        image_shape: tuple[int, int],
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """``loss_classifier``, ``loss_box_reg`` and ``loss_mask`` (Mask R-CNN, section 3).

        Args:
            image_shape: padded (height, width) of the batch.
            targets: boxes and masks in the pixels of the resized images.
            generator: what the sampler draws from; the global one by default.
        """
        samples = select_training_samples(
            proposals,
            targets,
            self.proposal_matcher,
            partial(self.fg_bg_sampler, generator=generator),
            self.box_coder,
        )
        labels = torch.cat(samples.labels)
        rois = list_to_rois(samples.proposals)
        class_logits, box_regression = self.predict_boxes(features, rois, image_shape)
        found = {
            "loss_classifier": self.loss_classifier(class_logits, labels),
            "loss_box_reg": self.loss_box_reg(
                box_regression, labels, torch.cat(samples.regression_targets)
            ),
        }
        if self.has_mask():
            of_object = partial(_take, indices=samples.objects)
            boxes, matched_idxs = of_object(samples.proposals), of_object(samples.matched_idxs)
            mask_logits = self.predict_masks(features, list_to_rois(boxes), image_shape)
            aligned = getattr(self.mask_roi_pool, "aligned", False)
            mask_targets = [
                project_masks_on_boxes(
                    target["masks"], in_image, matched, mask_logits.shape[-1], aligned
                )
                for target, in_image, matched in zip(targets, boxes, matched_idxs, strict=True)
            ]
            labels = torch.cat(of_object(samples.labels))
            labels = labels.masked_fill(labels == 0, -1)
            found["loss_mask"] = self.loss_mask(mask_logits, labels, torch.cat(mask_targets))
        return found


def takes_labels(mask_predictor: MaskPredictor) -> bool:
    """Whether it can give the mask of one class alone; one that was swapped in may not."""
    return "labels" in signature(getattr(mask_predictor, "forward", mask_predictor)).parameters


def _take(values: Sequence[Tensor], indices: Sequence[Tensor]) -> list[Tensor]:
    """``values[n][indices[n]]`` for each image ``n``."""
    return [of_image[chosen] for of_image, chosen in zip(values, indices, strict=True)]
