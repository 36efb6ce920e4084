"""From a detection back to its anchor: class logit, RoI level, proposal, anchor, location.

Shapes: see ``structures``.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.levels import (
    NOT_AVAILABLE,
    AnchorPlace,
    anchor_levels,
    anchor_place,
    pooling_levels,
)
from maskrcnn_scratch.structures import StageOutputs

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Provenance:
    """Where one detection comes from. None stands for "not available for this component".

    Boxes are (x1, y1, x2, y2) in the pixels of the resized image.

    Attributes:
        image, detection: which one it is.
        box, label, score: of the detection.
        class_row: index of the proposal's class in ``class_logits[image].flatten()``.
        proposal: index of the proposal, which is also its rank: 0 is the RPN's best.
        proposal_box, objectness: of the proposal.
        box_level: level that the box head's RoI was pooled from, from 0.
        mask_level: level that the mask head's RoI (the detection's box) was pooled from; None also
            without a mask branch.
        anchor: index of the anchor.
        anchor_box: the anchor.
        place: level, row, column and shape of the anchor.
        level_rank: how many anchors of that level have a higher objectness; the top-k of the level
            takes the first ranks.
    """

    image: int
    detection: int
    box: Box
    label: int
    score: float
    class_row: int
    proposal: int
    proposal_box: Box
    objectness: float
    box_level: int | None
    mask_level: int | None
    anchor: int
    anchor_box: Box
    place: AnchorPlace | None
    level_rank: int | None

    def __str__(self) -> str:
        place = NOT_AVAILABLE
        if self.place is not None:
            level, row, column, shape = self.place
            place = f"level {level}, row {row}, column {column}, shape {shape}"
        return "\n".join(
            [
                f"detection {self.detection}: label {self.label}, score {self.score:.3f}",
                f"class row {self.class_row}: proposal {self.proposal}, class {self.label}",
                f"RoI level {_or_not(self.box_level)}; of the mask {_or_not(self.mask_level)}",
                f"proposal {self.proposal}: objectness {self.objectness:.3f}",
                f"anchor {self.anchor}: {place}",
                f"rank in its level {_or_not(self.level_rank)}",
            ]
        )


def provenance(
    model: GeneralizedRCNN, stages: StageOutputs, image: int, detection: int
) -> Provenance:
    """The origin of detection ``detection`` of image ``image``, exact to the index.

    Args:
        model: the model that computed ``stages``.
        stages: from ``model.run_stages``.
        image: index in the batch.
        detection: index among the detections of that image, best first.

    Raises:
        IndexError: there is no such image or detection.
    """
    if not 0 <= image < len(stages.detections.counts):
        raise IndexError(f"image {image}: the batch has {len(stages.detections.counts)}")
    count = int(stages.detections.counts[image])
    if not 0 <= detection < count:
        raise IndexError(f"detection {detection}: image {image} has {count}")
    found, proposals = stages.detections, stages.proposals
    box, label = found.boxes[image, detection], int(found.labels[image, detection])
    proposal = int(found.proposal_indices[image, detection])
    anchor = int(proposals.anchor_indices[image, proposal])
    proposal_box = proposals.boxes[image, proposal]
    heads = model.roi_heads
    box_levels = pooling_levels(heads.box_roi_pool, stages, proposal_box[None])
    mask_levels = None
    if heads.has_mask():
        mask_levels = pooling_levels(heads.mask_roi_pool, stages, box[None])
    levels = anchor_levels(model, stages)
    place = level_rank = None
    if levels is not None:
        place = anchor_place(levels, anchor)
        level = levels[place.level]
        logits = stages.objectness[image, level.first : level.first + level.size]
        own = stages.objectness[image, anchor]
        # Ties are broken by the lower index, as in the top-k.
        ahead = (logits > own).sum() + (logits[: anchor - level.first] == own).sum()
        level_rank = int(ahead)
    return Provenance(
        image=image,
        detection=detection,
        box=_box(box),
        label=label,
        score=float(found.scores[image, detection]),
        class_row=proposal * stages.class_logits.shape[2] + label,
        proposal=proposal,
        proposal_box=_box(proposal_box),
        objectness=float(proposals.scores[image, proposal]),
        box_level=None if box_levels is None else int(box_levels[0]),
        mask_level=None if mask_levels is None else int(mask_levels[0]),
        anchor=anchor,
        anchor_box=_box(stages.anchors[anchor]),
        place=place,
        level_rank=level_rank,
    )


def _box(box: object) -> Box:
    return tuple(box.tolist())  # type: ignore[attr-defined]


def _or_not(value: int | None) -> str:
    return NOT_AVAILABLE if value is None else str(value)
