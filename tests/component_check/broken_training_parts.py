"""Matchers, samplers and losses that are wrong, each in one way, as in ``broken_parts.py``."""

from __future__ import annotations

from torch import nn

from maskrcnn_scratch import losses
from maskrcnn_scratch.targets.matcher import Matcher
from maskrcnn_scratch.targets.sampler import BalancedPositiveNegativeSampler, as_indices


def matcher_out_of_range(gt_boxes, boxes):
    return Matcher(0.5, 0.5)(gt_boxes, boxes) + 1


def matcher_needs_objects(gt_boxes, boxes):
    inside = (boxes[:, None, 0] >= gt_boxes[:, 0]) & (boxes[:, None, 2] <= gt_boxes[:, 2])
    return inside.float().max(dim=1).indices


class RepeatsIndices(BalancedPositiveNegativeSampler):
    def __init__(self):
        super().__init__(64, 0.5)

    def __call__(self, labels, generator=None):
        positives, negatives = as_indices(super().__call__(labels, generator))
        return [indices.repeat(2) for indices in positives], negatives


class SamplesIgnored(BalancedPositiveNegativeSampler):
    def __init__(self):
        super().__init__(64, 0.5)

    def __call__(self, labels, generator=None):
        return super().__call__([of_image.clamp(min=0) for of_image in labels], generator)


class IgnoresTheGenerator(BalancedPositiveNegativeSampler):
    def __init__(self):
        super().__init__(64, 0.5)

    def __call__(self, labels, generator=None):
        return super().__call__(labels)


def loss_without_gradient(class_logits, labels):
    return losses.loss_classifier(class_logits.detach(), labels)


def loss_nan_without_objects(box_regression, labels, regression_targets):
    objects = labels > 0
    deltas = box_regression.unflatten(1, (-1, 4))[objects, labels[objects]]
    return (deltas - regression_targets[objects]).abs().mean()


def loss_counts_ignored(objectness, labels):
    return nn.functional.binary_cross_entropy_with_logits(objectness, labels.clamp(min=0))


def loss_per_box(mask_logits, labels, mask_targets):
    return mask_logits.sum((1, 2, 3))


def loss_wrong_sign(objectness, labels):
    return -losses.loss_objectness(objectness, labels)


def loss_ascends(class_logits, labels):
    """Its value does not follow the predictions."""
    return 100 + class_logits.mean() * 0
