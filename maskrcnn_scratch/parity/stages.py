"""Checks of modules and stages. Each gets the input that torchvision's own stage had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchvision.ops.poolers import LevelMapper

from maskrcnn_scratch.faster_rcnn import FasterRCNN
from maskrcnn_scratch.parity.bilinear import paste_check
from maskrcnn_scratch.parity.compare import Check, Inputs, compare
from maskrcnn_scratch.parity.reference import Recording
from maskrcnn_scratch.roi_heads.detections import select_detections
from maskrcnn_scratch.rpn import RPNPredictions
from maskrcnn_scratch.rpn.head import flatten_levels
from maskrcnn_scratch.structures import ImageList, Proposals

# Relative. Ours are channels-last, torchvision's are not, and convolutions add up in another order.
LAYOUT = 1e-5


def stage_checks(
    model: FasterRCNN, recording: Recording, images: Sequence[Tensor]
) -> Iterator[Check]:
    """Every module and stage of ``model``, in the order in which data flows through them.

    A replaced pooler without ``map_levels`` has no check of levels.
    """
    exact = 0.0 if images[0].device.type == "cpu" else 1e-4
    given, gave = recording.inputs, recording.outputs
    batch = gave["transform"][0]
    sizes = torch.tensor(batch.image_sizes, device=images[0].device)
    channels_last = ImageList(batch.tensors.contiguous(memory_format=torch.channels_last), sizes)
    shape = tuple(batch.tensors.shape[-2:])

    ours, _ = model.transform(images)
    yield compare("stages", "transform", [ours.tensors, ours.sizes], [batch.tensors, sizes],
                  inputs={"image": images[0]})  # fmt: skip

    body, features = gave["backbone.body"], gave["backbone"]
    ours_body = model.get_submodule("backbone.body")(channels_last.tensors)
    yield compare("modules", "ResNet-50 (C2-C5)", ours_body, body, rtol=LAYOUT,
                  inputs={"images": batch.tensors})  # fmt: skip
    ours_features = model.get_submodule("backbone.fpn")(body)
    yield compare("modules", "FPN (P2-P6)", ours_features, features, rtol=LAYOUT)

    anchors = gave["rpn.anchor_generator"]
    ours_anchors = model.rpn.anchor_generator(channels_last, list(features.values()))
    yield compare("stages", "anchors", ours_anchors, anchors)
    objectness, deltas = gave["rpn.head"]
    ours_head = model.rpn.head(list(features.values()))
    yield compare("modules", "RPN head", ours_head, [objectness, deltas], rtol=LAYOUT)

    predictions = RPNPredictions(
        anchors[0],
        flatten_levels(objectness, 1).squeeze(2),
        flatten_levels(deltas, 4),
        [level[0].numel() for level in objectness],
    )
    proposals: list[Tensor] = gave["rpn"][0]
    ours_proposals = model.rpn.propose(predictions, sizes).to_list()
    yield compare("stages", "proposals", in_order(ours_proposals), in_order(proposals), atol=exact)

    heads = model.roi_heads
    for name in ("box", "mask") if heads.has_mask() else ("box",):
        pool = getattr(heads, f"{name}_roi_pool")
        boxes = given[f"roi_heads.{name}_roi_pool"][1]
        inputs: Inputs = {"boxes": (torch.cat(list(boxes)), 0)}
        if hasattr(pool, "map_levels"):
            reference_levels = level_mapper(recording, f"{name}_roi_pool")(boxes)
            scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
            levels = pool.map_levels(torch.cat(list(boxes)), scales)
            yield compare("stages", f"{name} levels", levels, reference_levels, inputs=inputs)
        pooled = pool(features, boxes, [shape])
        theirs = gave[f"roi_heads.{name}_roi_pool"]
        yield compare("stages", f"{name} RoIAlign", pooled, theirs, atol=exact, inputs=inputs)

    pooled = gave["roi_heads.box_roi_pool"]
    box_features = heads.box_head(pooled)
    yield compare("modules", "box head", box_features, gave["roi_heads.box_head"], rtol=LAYOUT,
                  inputs={"pooled": pooled})  # fmt: skip
    class_logits, box_regression = gave["roi_heads.box_predictor"]
    ours_boxes = heads.box_predictor(gave["roi_heads.box_head"])
    yield compare(
        "modules", "box predictor", ours_boxes, [class_logits, box_regression], rtol=LAYOUT
    )

    padded = pad_proposals(proposals)
    counts = [len(boxes) for boxes in proposals]
    detections = select_detections(
        pad(class_logits.split(counts)),
        pad(box_regression.unflatten(1, (-1, 4)).split(counts)),
        padded,
        sizes,
        score_thresh=heads.score_thresh,
        nms_thresh=heads.nms_thresh,
        detections_per_img=heads.detections_per_img,
        min_size=heads.min_size,
        box_coder=heads.box_coder,
        nms=heads.nms,
    )
    found: list[dict[str, Tensor]] = gave["roi_heads"][0]
    fields = ("boxes", "labels", "scores")
    kept = [
        {field: getattr(detections, field)[n, :count] for field in fields}
        for n, count in enumerate(detections.counts.tolist())
    ]
    theirs = [{field: one[field] for field in fields} for one in found]
    yield compare("stages", "detections", kept, theirs, atol=exact)

    if heads.mask_head is None or heads.mask_predictor is None:
        return
    mask_features = heads.mask_head(gave["roi_heads.mask_roi_pool"])
    yield compare("modules", "mask head", mask_features, gave["roi_heads.mask_head"], rtol=LAYOUT)
    logits = heads.mask_predictor(gave["roi_heads.mask_head"])
    yield compare(
        "modules", "mask predictor", logits, gave["roi_heads.mask_predictor"], rtol=LAYOUT
    )

    for n, (one, result) in enumerate(zip(found, recording.results, strict=True)):
        size = (images[n].shape[-2], images[n].shape[-1])
        pasted = model.transform.paste(one["masks"], result["boxes"], size)
        yield paste_check(
            "stages",
            f"paste, image {n}",
            pasted,
            result["masks"],
            one["masks"],
            result["boxes"],
            size,
        )


def level_mapper(recording: Recording, pool: str) -> LevelMapper:
    """torchvision's level mapper, which its pooler makes at its first call."""
    mapper: LevelMapper = recording.reference.get_submodule(f"roi_heads.{pool}").map_levels
    return mapper


def in_order(boxes: Sequence[Tensor]) -> list[Tensor]:
    """Boxes sorted by coordinates, as torchvision sorts equal scores in no fixed order."""
    for column in range(4):
        boxes = [in_image[in_image[:, column].argsort(stable=True)] for in_image in boxes]
    return list(boxes)


def pad(rows: Sequence[Tensor]) -> Tensor:
    """``[K_n, ...]`` of each image -> ``[N, max K_n, ...]``, padded with zeros."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def pad_proposals(boxes: Sequence[Tensor]) -> Proposals:
    """torchvision's list of boxes per image, padded."""
    counts = torch.tensor([len(in_image) for in_image in boxes], device=boxes[0].device)
    padded = pad(boxes)
    return Proposals(
        padded, padded[..., 0], counts, torch.zeros_like(padded[..., 0], dtype=torch.int64)
    )
