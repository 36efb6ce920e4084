"""Parts of the forward pass that are wrong, each in one way.

The tests name the check that must notice.
"""

from __future__ import annotations

import torch
from torch import nn

from maskrcnn_scratch.component_check.host import SmallBackbone, default_anchor_generator
from maskrcnn_scratch.component_check.subject import Setting
from maskrcnn_scratch.ops import batched_nms_padded
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.roi_heads import (
    FastRCNNPredictor,
    MaskRCNNPredictor,
    MultiScaleRoIAlign,
    TwoMLPHead,
)
from maskrcnn_scratch.rpn import RPNHead


class Small(SmallBackbone):
    def __init__(self):
        super().__init__(channels=64)


class WrongChannels(Small):
    def __init__(self):
        super().__init__()
        self.out_channels = 256


class CoarsestFirst(Small):
    def forward(self, images):
        return dict(reversed(super().forward(images).items()))


class OneSize(Small):
    """As a transformer with a fixed grid."""

    def forward(self, images):
        maps = super().forward(images)
        return {name: nn.functional.adaptive_avg_pool2d(level, 8) for name, level in maps.items()}


class Stride14(nn.Conv2d):
    """Not broken: RoIAlign has to be told its scale."""

    def __init__(self):
        super().__init__(3, 64, 14, stride=14)
        self.out_channels = 64


class OtherDtype(Small):
    def forward(self, images):
        return {name: level.double() for name, level in super().forward(images).items()}


class ListOfMaps(Small):
    """As timm's ``features_only`` models."""

    def forward(self, images):
        return list(super().forward(images).values())


class UnusedParameter(Small):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)


class FoldedWrongly(Small):
    """A convolution that a norm follows, and that is used without the norm as well."""

    def __init__(self):
        super().__init__()
        self.last = nn.Sequential(nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64))

    def forward(self, images):
        maps = super().forward(images)
        return {name: self.last(level) + self.last[0](level) for name, level in maps.items()}


class CachesTheFirstBatch(Small):
    """Shifts by the mean of the first image it ever saw: state outside of the state_dict."""

    mean = None

    def forward(self, images):
        if self.mean is None:
            self.mean = images.mean()
        else:
            self.mean = self.mean + 1
        return {name: level + self.mean for name, level in super().forward(images).items()}


class HiddenWeights(TwoMLPHead):
    """Weights in a plain attribute: they are no part of the state_dict."""

    def __init__(self):
        super().__init__(64 * 7 * 7, 32)
        self.scale = torch.rand(32)

    def forward(self, x):
        return super().forward(x) * self.scale


class Noise(TwoMLPHead):
    """Dropout that stays on in eval mode."""

    def __init__(self):
        super().__init__(64 * 7 * 7, 32)

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, training=True)


class BatchMean(TwoMLPHead):
    """Centres the features of a RoI with those of the other RoIs."""

    def __init__(self):
        super().__init__(64 * 7 * 7, 32)

    def forward(self, x):
        x = super().forward(x)
        return x - x.mean(0, keepdim=True) if len(x) else x


class Unpicklable(TwoMLPHead):
    def __init__(self):
        super().__init__(64 * 7 * 7, 32)
        self.activation = lambda x: x.relu()


class WritesIntoItsInput(RPNHead):
    """The feature maps are those of the RoI heads as well."""

    def __init__(self):
        super().__init__(64, 3)

    def forward(self, features):
        return super().forward([feature.relu_() for feature in features])


class RaisesForOneRoI(TwoMLPHead):
    def __init__(self):
        super().__init__(64 * 7 * 7, 32)

    def forward(self, x):
        return super().forward(x.squeeze()) if len(x) != 1 else self.fc6(x.squeeze(0))


class MemoryOrder(TwoMLPHead):
    """Reads the pooled features in the order of memory."""

    def __init__(self):
        super().__init__(64 * 7 * 7, 32)

    def forward(self, x):
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            x = x.permute(0, 2, 3, 1)
        return super().forward(x)


class ForgetsLastLevel(RPNHead):
    def __init__(self):
        super().__init__(64, 3)

    def forward(self, features):
        return super().forward(features[:-1])


def too_many_anchors():
    generator = default_anchor_generator(Setting(64), 5)
    generator.num_anchors_per_location = lambda: [2] * 5
    return generator


class ColumnsFirst:
    """Anchors by column, then row."""

    def __init__(self):
        self.inner = default_anchor_generator(Setting(64), 5)

    def num_anchors_per_location(self):
        return self.inner.num_anchors_per_location()

    def __call__(self, images, maps):
        swapped = images.__class__(images.tensors.transpose(2, 3), images.sizes.flip(1))
        anchors = self.inner(swapped, [level.transpose(2, 3) for level in maps])
        return [boxes[:, [1, 0, 3, 2]] for boxes in anchors]


def nms_that_selects_padding(boxes, scores, groups, iou_threshold, max_out, num_groups):
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :max_out]
    short = max_out - order.shape[1]
    counts = torch.full((len(scores),), order.shape[1])
    return nn.functional.pad(order, (0, short)), counts


def nms_worst_first(boxes, scores, groups, iou_threshold, max_out, num_groups):
    indices, counts = batched_nms_padded(boxes, scores, groups, iou_threshold, max_out, num_groups)
    for n, count in enumerate(counts.tolist()):
        indices[n, :count] = indices[n, :count].flip(0)
    return indices, counts


class SwappedAxes(MultiScaleRoIAlign):
    """(y1, x1, y2, x2)."""

    def __init__(self):
        super().__init__(["0", "1", "2", "3"], 7, 2, canonical_scale=64, canonical_level=3)

    def forward(self, x, boxes, image_shapes):
        if not isinstance(boxes, torch.Tensor):
            boxes = [of_image[:, [1, 0, 3, 2]] for of_image in boxes]
        else:
            boxes = boxes[:, [0, 2, 1, 4, 3]]
        return super().forward(x, boxes, image_shapes)


class NeedsOneDtype(MultiScaleRoIAlign):
    def __init__(self):
        super().__init__(["0", "1", "2", "3"], 7, 2)

    def forward(self, x, boxes, image_shapes):
        dtype = next(iter(x.values())).dtype
        given = boxes.dtype if isinstance(boxes, torch.Tensor) else boxes[0].dtype
        if given != dtype:
            raise RuntimeError(f"features are {dtype}, RoIs {given}")
        return super().forward(x, boxes, image_shapes)


class NotInverse(BoxCoder):
    def __init__(self):
        super().__init__((10.0, 10.0, 5.0, 5.0))

    def decode(self, deltas, references):
        return super().decode(deltas / 2, references)


class Overflows(BoxCoder):
    def __init__(self):
        super().__init__((1.0, 1.0, 1.0, 1.0), bbox_xform_clip=float("inf"))


def predictor_of_coco():
    return MaskRCNNPredictor(64, 32, 91)


class OneDeltaPerBox(FastRCNNPredictor):
    def __init__(self):
        super().__init__(64, 4)
        self.bbox_pred = nn.Linear(64, 2)


class OtherMasksForLabels(MaskRCNNPredictor):
    def __init__(self):
        super().__init__(64, 32, 4)

    def forward(self, input, labels=None):
        return super().forward(input) if labels is None else super().forward(input, labels * 0)


class RaisesAtOnce(nn.Module):
    out_channels = 64

    def forward(self, images):
        raise KeyError("stage5")


class NeedsAnArgument(nn.Module):
    def __init__(self, width):
        super().__init__()


def not_a_detector():
    return nn.Linear(3, 3)


class BranchWithoutLosses(nn.Module):
    def losses(self, features, samples, targets, padded_size):
        return {}

    def detect(self, features, detections, padded_size):
        return {"ones": torch.ones_like(detections.scores)}


class BranchOfOneEntry(BranchWithoutLosses):
    def detect(self, features, detections, padded_size):
        return {"ones": torch.ones(len(detections.scores), 1)}


class BranchOfNothing(BranchWithoutLosses):
    def detect(self, features, detections, padded_size):
        return {}
