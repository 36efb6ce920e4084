"""The RPN called as a stage: torchvision's methods, with lists per image instead of padding.

Code that calls the stages of torchvision's detectors gets the same types and values here. The
model itself uses ``predict``, ``propose`` and ``losses`` of ``rpn.py``. Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.rpn.proposals import select_proposals
from maskrcnn_scratch.structures import ImageList, Target, as_image_list, unpad
from maskrcnn_scratch.targets.rpn_targets import assign_targets_to_anchors


class _Decoded:
    """A box coder for boxes that are decoded already."""

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        return deltas


class RPNStage:
    """torchvision's methods of ``RegionProposalNetwork``, which inherits them.

    ``self`` is a ``RegionProposalNetwork``: mypy allows no other annotation of it than Any.
    """

    def forward(
        self: Any,
        images: ImageList,
        features: Mapping[str, Tensor],
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals ``[P_n, 4]`` per image, and the losses: empty in eval mode.

        Args:
            images: ours or torchvision's ``ImageList``.
            features: ``[N, F, H_l, W_l]`` by name, finest first.
            targets: needed in training mode only.

        Raises:
            ValueError: no targets in training mode.
        """
        images = as_image_list(images)
        predictions = self.predict(images, features)
        phase = "training" if self.training else "testing"
        proposals = self.propose(predictions, images.sizes, phase)
        losses = {}
        if self.training:
            if targets is None:
                raise ValueError("targets should not be None")
            losses = self.losses(predictions, targets)
        return proposals.to_list(), losses

    def filter_proposals(
        self: Any,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: Sequence[tuple[int, int]],
        num_anchors_per_level: Sequence[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes ``[P_n, 4]`` and scores ``[P_n]`` per image, after top-k and NMS.

        Args:
            proposals: decoded boxes, ``[N, A, 4]``.
            objectness: logits, ``[N, A]`` or any shape of as many values.
            image_shapes: (height, width) per image, without padding.
            num_anchors_per_level: they add up to ``A``.
        """
        phase = "training" if self.training else "testing"
        found = select_proposals(
            proposals.new_zeros(proposals.shape[1:]),
            objectness.detach().reshape(proposals.shape[:2]),
            proposals,
            torch.tensor(image_shapes, device=proposals.device),
            level_sizes=num_anchors_per_level,
            pre_nms_top_n=self.pre_nms_top_n[phase],
            post_nms_top_n=self.post_nms_top_n[phase],
            score_thresh=self.score_thresh,
            nms_thresh=self.nms_thresh,
            min_size=self.min_size,
            box_coder=_Decoded(),  # type: ignore[arg-type]
            nms=self.nms,
        )
        return found.to_list(), unpad(found.scores, found.counts)

    def assign_targets_to_anchors(
        self: Any, anchors: Sequence[Tensor], targets: Sequence[Target]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels ``[A]`` and matched boxes ``[A, 4]`` per image; zero boxes without objects."""
        labels, matched_gt_boxes = assign_targets_to_anchors(
            anchors, [target["boxes"] for target in targets], self.proposal_matcher
        )
        matched_gt_boxes = [
            boxes if len(target["boxes"]) else torch.zeros_like(boxes)
            for boxes, target in zip(matched_gt_boxes, targets, strict=True)
        ]
        return labels, matched_gt_boxes

    def compute_loss(
        self: Any,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: Sequence[Tensor],
        regression_targets: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """``loss_objectness`` and ``loss_rpn_box_reg``, from samples of all anchors.

        Args:
            objectness: logits, ``[N * A]`` or any shape of as many values.
            pred_bbox_deltas: ``[N * A, 4]``.
            labels: ``[A]`` per image.
            regression_targets: ``[A, 4]`` per image.
        """
        every = torch.cat(list(regression_targets))
        losses = self.losses_of_sample(
            objectness, pred_bbox_deltas, list(labels), lambda sampled: every[sampled]
        )
        return losses["loss_objectness"], losses["loss_rpn_box_reg"]
