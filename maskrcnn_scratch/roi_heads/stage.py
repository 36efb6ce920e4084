"""The RoI heads called as a stage: torchvision's methods, with lists per image.

Code that calls the stages of torchvision's detectors gets the same types and values here. The
model itself uses ``detect_boxes``, ``detect_masks`` and ``losses`` of ``roi_heads.py``. Shapes: see
``structures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from maskrcnn_scratch.structures import ImageList, Proposals, Result, Target, unpad
from maskrcnn_scratch.targets.roi_targets import labels_of_matches, select_training_samples
from maskrcnn_scratch.targets.sampler import with_generator


class RoIHeadsStage:
    """torchvision's methods of ``RoIHeads``, which inherits them.

    ``self`` is a ``RoIHeads``: mypy allows no other annotation of it than Any.
    """

    def forward(
        self: Any,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[Result], dict[str, Tensor]]:
        """Detections in eval mode, losses in training mode; the other of the two is empty.

        Args:
            features: ``[N, F, H_l, W_l]`` by name.
            proposals: ``[P_n, 4]`` per image.
            image_shapes: (height, width) per image, without padding; the largest gives the scales
                of the feature maps.
            targets: needed in training mode only.

        Returns:
            A dict per image: ``boxes`` ``[D, 4]``, ``labels`` ``[D]``, ``scores`` ``[D]`` and, with
            a mask branch, ``masks`` ``[D, 1, M, M]`` in 0-1, and the outputs of further branches;
            boxes in the pixels of the resized image. And the losses by name.

        Raises:
            ValueError: targets that are missing in training mode, or lack a field.
        """
        padded = pad_proposals(proposals)
        size = largest_size(image_shapes)
        if self.training:
            self.check_targets(targets)
            assert targets is not None
            return [], self.losses(features, padded, size, targets)
        image_sizes = torch.tensor(image_shapes, device=padded.boxes.device)
        images = ImageList(padded.boxes.new_empty((len(proposals), 0, *size)), image_sizes)
        _, _, found = self.detect_boxes(features, padded, images)
        if self.has_mask():
            found.masks = self.detect_masks(features, found, images)
        of_branches = self.detect_branches(features, found, size)
        outputs = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores}
        if found.masks is not None:
            outputs["masks"] = found.masks
        outputs |= of_branches
        by_image = {name: unpad(values, found.counts) for name, values in outputs.items()}
        return [
            {name: values[n] for name, values in by_image.items()} for n in range(len(proposals))
        ], {}

    def postprocess_detections(
        self: Any,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes ``[D, 4]``, scores ``[D]`` and labels ``[D]`` per image, after NMS per class.

        Args:
            class_logits: ``[R, C]``.
            box_regression: deltas, ``[R, C * 4]``.
            proposals: ``[P_n, 4]`` per image; they add up to ``R``.
            image_shapes: (height, width) per image, without padding.
        """
        numbers = [len(boxes) for boxes in proposals]
        padded = pad_proposals(proposals)
        found = self.select_detections(
            _pad(class_logits.split(numbers)),
            _pad(box_regression.split(numbers)).unflatten(2, (-1, 4)),
            padded,
            torch.tensor(image_shapes, device=class_logits.device),
        )
        boxes, scores, labels = (
            unpad(values, found.counts) for values in (found.boxes, found.scores, found.labels)
        )
        return boxes, scores, labels

    def select_training_samples(
        self: Any, proposals: Sequence[Tensor], targets: Sequence[Target] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Proposals, matched indices, labels and regression targets of the sample, per image.

        Without objects the regression targets are finite (torchvision's are -inf); no loss uses
        them.
        """
        self.check_targets(targets)
        assert targets is not None
        samples = select_training_samples(
            pad_proposals(proposals),
            targets,
            self.proposal_matcher,
            with_generator(self.fg_bg_sampler, None),
            self.box_coder,
        )
        return samples.proposals, samples.matched_idxs, samples.labels, samples.regression_targets

    def assign_targets_to_proposals(
        self: Any,
        proposals: Sequence[Tensor],
        gt_boxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The object that each proposal is matched with, and its label.

        Args:
            proposals: ``[P_n, 4]`` per image.
            gt_boxes: ``[G, 4]`` per image.
            gt_labels: int64 ``[G]`` per image.

        Returns:
            matched_idxs: int64 ``[P_n]`` per image in ``[0, G)``; 0 where there is no match.
            labels: int64 ``[P_n]`` per image; 0 is background, ``IGNORE_LABEL`` between the
                thresholds.
        """
        matched = [
            self.proposal_matcher(objects, boxes)
            for objects, boxes in zip(gt_boxes, proposals, strict=True)
        ]
        labels = [
            labels_of_matches(of_image[: len(objects)], matches)
            for of_image, objects, matches in zip(gt_labels, gt_boxes, matched, strict=True)
        ]
        return [matches.clamp(min=0) for matches in matched], labels

    def check_targets(self: Any, targets: Sequence[Target] | None) -> None:
        """Raises a ValueError if there are no targets, or one lacks a field."""
        if targets is None:
            raise ValueError("targets should not be None")
        for field in ("boxes", "labels", "masks") if self.has_mask() else ("boxes", "labels"):
            if not all(field in target for target in targets):
                raise ValueError(f"Every element of targets should have a {field} key")

    def has_keypoint(self) -> bool:
        """False: there is no keypoint branch."""
        return False


def pad_proposals(boxes: Sequence[Tensor]) -> Proposals:
    """``[P_n, 4]`` per image as ``Proposals`` with at least one entry per image."""
    padded = _pad(boxes)  # [N, P, 4]
    counts = torch.tensor([len(of_image) for of_image in boxes], device=padded.device)
    entries = padded[..., 0]
    return Proposals(padded, torch.zeros_like(entries), counts, torch.zeros_like(entries).long())


def largest_size(image_shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The largest height and the largest width."""
    return max(height for height, _ in image_shapes), max(width for _, width in image_shapes)


def _pad(values: Sequence[Tensor]) -> Tensor:
    """``[P_n, ...]`` per image -> ``[N, max(1, P), ...]``, zero where there is none."""
    padded = pad_sequence(list(values), batch_first=True)
    if padded.shape[1] == 0:
        padded = padded.new_zeros((padded.shape[0], 1, *padded.shape[2:]))
    return padded
