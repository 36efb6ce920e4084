"""Each stage on the input of torchvision's stage."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.parity.reference import Recording, reference_of
from maskrcnn_scratch.roi_heads.detections import select_detections
from maskrcnn_scratch.rpn import RPNPredictions
from maskrcnn_scratch.rpn.head import flatten_levels
from tools.benchmarks.clock import Clock, Timing


@torch.no_grad()
def time_stages(clock: Clock, model: MaskRCNN, image: Tensor) -> Iterator[Timing]:
    reference = reference_of(model)
    recording = Recording(reference, [image])
    gave = recording.outputs
    batch, features = gave["transform"][0], gave["backbone"]
    channels_last = {
        name: feature.contiguous(memory_format=torch.channels_last)
        for name, feature in features.items()
    }
    mine, _ = model.transform([image])
    yield clock.pair(
        "stages", "transform",
        lambda: model.transform([image]), lambda: reference.transform([image]),
    )  # fmt: skip
    yield clock.pair(
        "stages", "backbone and FPN",
        lambda: model.backbone(mine.tensors), lambda: reference.backbone(batch.tensors),
    )  # fmt: skip
    maps = list(features.values())
    yield clock.pair(
        "stages", "RPN head",
        lambda: model.rpn.head(list(channels_last.values())), lambda: reference.rpn.head(maps),
    )  # fmt: skip
    objectness, deltas = gave["rpn.head"]
    anchors = gave["rpn.anchor_generator"]
    sizes = [level[0].numel() for level in objectness]
    predictions = RPNPredictions(
        anchors[0], flatten_levels(objectness, 1).squeeze(2), flatten_levels(deltas, 4), sizes
    )

    def reference_proposals() -> object:
        boxes = reference.rpn.box_coder.decode(predictions.pred_bbox_deltas.flatten(0, 1), anchors)
        return reference.rpn.filter_proposals(
            boxes.view(1, -1, 4), predictions.objectness, batch.image_sizes, sizes
        )

    yield clock.pair(
        "stages", "proposals",
        lambda: model.rpn.propose(predictions, mine.sizes), reference_proposals,
    )  # fmt: skip
    proposals = gave["rpn"][0]
    for name in ("box", "mask"):
        boxes = recording.inputs[f"roi_heads.{name}_roi_pool"][1]
        ours = getattr(model.roi_heads, f"{name}_roi_pool")
        theirs = getattr(reference.roi_heads, f"{name}_roi_pool")
        yield clock.pair(
            "stages", f"{name} RoIAlign, all levels",
            partial(ours, channels_last, boxes, [mine.padded_size]),
            partial(theirs, features, boxes, batch.image_sizes),
        )  # fmt: skip
    stages = model.run_stages([image])
    class_logits, box_regression = gave["roi_heads.box_predictor"]
    heads = model.roi_heads
    yield clock.pair(
        "stages", "91 classes to detections: softmax, decode, filter, NMS",
        lambda: select_detections(
            class_logits[None], box_regression.unflatten(1, (-1, 4))[None], stages.proposals,
            mine.sizes, score_thresh=heads.score_thresh, nms_thresh=heads.nms_thresh,
            detections_per_img=heads.detections_per_img, min_size=heads.min_size,
            box_coder=heads.box_coder, nms=heads.nms,
        ),
        lambda: reference.roi_heads.postprocess_detections(
            class_logits, box_regression, proposals, batch.image_sizes
        ),
    )  # fmt: skip
    yield clock.pair(
        "stages", "box head, from features to detections",
        lambda: heads.detect_boxes(channels_last, stages.proposals, mine),
        lambda: reference.roi_heads.postprocess_detections(
            *reference.roi_heads.box_predictor(
                reference.roi_heads.box_head(
                    reference.roi_heads.box_roi_pool(features, proposals, batch.image_sizes)
                )
            ),
            proposals,
            batch.image_sizes,
        ),
    )  # fmt: skip
