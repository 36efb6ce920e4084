"""Region Proposal Network (Ren et al. 2015, "Faster R-CNN", section 3).

To follow its training, read this file, ``targets/rpn_targets.py``, ``targets/matcher.py`` and
``losses.py``. Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import losses
from maskrcnn_scratch.call_part import asks_for, with_context
from maskrcnn_scratch.interfaces import (
    NMS,
    AnchorGenerator,
    BoxCoder,
    Loss,
    Matcher,
    RPNHead,
    Sampler,
)
from maskrcnn_scratch.ops import batched_nms_padded
from maskrcnn_scratch.ops.boxes import BoxCoder as DeltaBoxCoder
from maskrcnn_scratch.rpn.head import flatten_levels
from maskrcnn_scratch.rpn.proposals import select_proposals
from maskrcnn_scratch.rpn.stage import RPNStage
from maskrcnn_scratch.structures import (
    IGNORE_LABEL,
    ImageList,
    Proposals,
    Target,
    at_least_float32,
)
from maskrcnn_scratch.targets.matcher import Matcher as IoUMatcher
from maskrcnn_scratch.targets.rpn_targets import assign_targets_to_anchors
from maskrcnn_scratch.targets.sampler import (
    BalancedPositiveNegativeSampler,
    as_indices,
    concatenate_samples,
    with_generator,
)


@dataclass
class RPNPredictions:
    """The RPN's predictions for every anchor.

    Attributes:
        anchors: ``[A, 4]``, the same for every image of the batch.
        objectness: logits, ``[N, A]``.
        pred_bbox_deltas: box deltas relative to the anchors, ``[N, A, 4]``.
        level_sizes: anchors per level, finest first; they add up to ``A``.
    """

    anchors: Tensor
    objectness: Tensor
    pred_bbox_deltas: Tensor
    level_sizes: list[int]


class RegionProposalNetwork(RPNStage, nn.Module):
    """Proposes object regions, regardless of the class.

    Called as a stage, it has torchvision's interface: see ``stage``.

    Args:
        anchor_generator, head: see ``interfaces``.
        fg_iou_thresh: anchors with at least this IoU with an object are positive in training.
        bg_iou_thresh: anchors below this IoU are negative; those between are ignored.
        batch_size_per_image: anchors sampled per image for the losses.
        positive_fraction: the largest fraction of them that is positive.
        pre_nms_top_n: candidates per level, as ``{"training": 2000, "testing": 1000}``.
        post_nms_top_n: proposals per image, ``P``, likewise.
        nms_thresh: IoU above which the lower-scoring one of two boxes of a level is suppressed.
        score_thresh: the lowest objectness, in 0-1, of a proposal.
        box_coder, nms, proposal_matcher, fg_bg_sampler: replacements for the defaults; see
            ``interfaces``.
        loss_objectness, loss_rpn_box_reg: replacements for those in ``losses``; see
            ``interfaces.Loss``.
    """

    min_size = 1e-3  # pixels; proposals with a shorter side are dropped

    def __init__(
        self,
        anchor_generator: AnchorGenerator,
        head: RPNHead,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_top_n: Mapping[str, int],
        post_nms_top_n: Mapping[str, int],
        nms_thresh: float,
        score_thresh: float = 0.0,
        *,
        box_coder: BoxCoder | None = None,
        nms: NMS = batched_nms_padded,
        proposal_matcher: Matcher | None = None,
        fg_bg_sampler: Sampler | None = None,
        loss_objectness: Loss = losses.loss_objectness,
        loss_rpn_box_reg: Loss = losses.loss_rpn_box_reg,
    ) -> None:
        super().__init__()
        self.anchor_generator = anchor_generator
        self.head = head
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.score_thresh = score_thresh
        self.box_coder = box_coder or DeltaBoxCoder((1.0, 1.0, 1.0, 1.0))
        self.nms = nms
        self.proposal_matcher = proposal_matcher or IoUMatcher(
            fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=True
        )
        self.fg_bg_sampler = fg_bg_sampler or BalancedPositiveNegativeSampler(
            batch_size_per_image, positive_fraction
        )
        self.loss_objectness = loss_objectness
        self.loss_rpn_box_reg = loss_rpn_box_reg

    def predict(self, images: ImageList, features: Mapping[str, Tensor]) -> RPNPredictions:
        """Predicts objectness and box deltas for every anchor (section 3.1).

        Args:
            images: the batch; gives the padded size.
            features: ``[N, F, H_l, W_l]`` by name, finest first; all of them are used.

        Raises:
            ValueError: numbers of levels or of anchors that do not fit together.
        """
        maps = list(features.values())
        # All images have the same anchors: those of the first are enough.
        first_image = ImageList(images.tensors[:1], images.sizes[:1])
        anchors = self.anchor_generator(first_image, [level[:1] for level in maps])[0]  # [A, 4]
        objectness, pred_bbox_deltas = self.head(maps)  # per level
        self.check_head(objectness, pred_bbox_deltas)
        return RPNPredictions(
            anchors,
            at_least_float32(flatten_levels(objectness, 1).squeeze(2)),  # [N, A]
            at_least_float32(flatten_levels(pred_bbox_deltas, 4)),  # [N, A, 4]
            [level.shape[1] * level.shape[2] * level.shape[3] for level in objectness],
        )

    def check_head(self, objectness: Sequence[Tensor], pred_bbox_deltas: Sequence[Tensor]) -> None:
        """Raises a ValueError if the head's channels do not fit the anchors per location."""
        anchors = list(self.anchor_generator.num_anchors_per_location())
        logits = [level.shape[1] for level in objectness]
        deltas = [level.shape[1] for level in pred_bbox_deltas]
        if logits != anchors or deltas != [4 * a for a in anchors]:
            raise ValueError(
                f"the RPN head predicts {logits} logits and {deltas} deltas per location of each "
                f"level, the anchor generator has {anchors} anchors per location: as many logits "
                "and four times as many deltas are needed"
            )

    def propose(
        self,
        predictions: RPNPredictions,
        image_sizes: Tensor,
        phase: Literal["training", "testing"] = "testing",
    ) -> Proposals:
        """The best boxes of each image (section 3.3).

        No gradient flows through them, as in approximate joint training (section 3.2).

        Args:
            predictions: from ``predict``.
            image_sizes: (height, width) without padding, ``[N, 2]``.
            phase: which numbers of ``pre_nms_top_n`` and ``post_nms_top_n`` are used.
        """
        return select_proposals(
            predictions.anchors,
            predictions.objectness.detach(),
            predictions.pred_bbox_deltas.detach(),
            image_sizes,
            level_sizes=predictions.level_sizes,
            pre_nms_top_n=self.pre_nms_top_n[phase],
            post_nms_top_n=self.post_nms_top_n[phase],
            score_thresh=self.score_thresh,
            nms_thresh=self.nms_thresh,
            min_size=self.min_size,
            box_coder=self.box_coder,
            nms=self.nms,
        )

    def losses(
        self,
        predictions: RPNPredictions,
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """``loss_objectness`` and ``loss_rpn_box_reg`` (Eq. 1), each a scalar.

        Args:
            predictions: from ``predict``.
            targets: one per image; boxes in the pixels of the resized images.
            generator: source of random numbers for the sampler; the global one by default.
        """
        num_images, num_anchors = predictions.objectness.shape
        labels, matched_gt_boxes = assign_targets_to_anchors(
            [predictions.anchors] * num_images,
            [target["boxes"].to(predictions.anchors.dtype) for target in targets],
            with_context(self.proposal_matcher, level_sizes=predictions.level_sizes),
        )  # per image: [A], [A, 4]
        gt_boxes = torch.cat(matched_gt_boxes)  # [N * A, 4]
        return self.losses_of_sample(
            predictions.objectness,
            predictions.pred_bbox_deltas.flatten(0, 1),
            labels,
            lambda sampled: self.box_coder.encode(
                gt_boxes[sampled], predictions.anchors[sampled % num_anchors]
            ),  # [B, 4] (Eq. 2)
            generator,
            predictions.anchors,
        )

    def losses_of_sample(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets_of: Callable[[Tensor], Tensor],
        generator: torch.Generator | None = None,
        anchors: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Both losses, of the anchors that are sampled.

        Args:
            objectness: logits, ``[N, A]``.
            pred_bbox_deltas: ``[N * A, 4]``.
            labels: ``[A]`` per image.
            regression_targets_of: the regression targets ``[B, 4]`` of the sampled anchors, which
                are given as indices ``[B]`` in ``[0, N * A)``.
            generator: see ``losses``.
            anchors: ``[A, 4]``, for losses that ask for them.
        """
        sampler = with_generator(self.fg_bg_sampler, generator)
        if asks_for(sampler, "scores") or asks_for(sampler, "losses"):
            sampler = with_context(sampler, **scores_and_losses(objectness.detach(), labels))
        positives, negatives = as_indices(sampler(labels))
        # Both [B]: indices in [0, N * A) of the sampled anchors, and their labels.
        sampled, sampled_labels = concatenate_samples(positives, negatives, labels)
        context: dict[str, Any] = {"box_coder": self.box_coder}
        if anchors is not None:
            context["anchors"] = anchors[sampled % len(anchors)]  # [B, 4]
        loss_objectness = with_context(self.loss_objectness, **context)
        loss_rpn_box_reg = with_context(self.loss_rpn_box_reg, **context)
        return {
            "loss_objectness": loss_objectness(objectness.flatten()[sampled], sampled_labels),
            "loss_rpn_box_reg": loss_rpn_box_reg(
                pred_bbox_deltas[sampled], sampled_labels, regression_targets_of(sampled)
            ),
        }


def scores_and_losses(objectness: Tensor, labels: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """What a sampler may ask for: see ``interfaces.Sampler``.

    Args:
        objectness: logits, ``[N, A]``.
        labels: ``[A]`` per image.
    """
    per_image = [of_image.flatten() for of_image in objectness]
    return {
        "scores": [logits.sigmoid() for logits in per_image],
        "losses": [
            F.binary_cross_entropy_with_logits(
                logits, labels_in_image.clamp(min=0).to(logits.dtype), reduction="none"
            ).masked_fill(labels_in_image == IGNORE_LABEL, 0)
            for logits, labels_in_image in zip(per_image, labels, strict=True)
        ],
    }
