"""The complete model: detections are matched one to one, and every difference is explained.

Two correct implementations round differently (convolutions in another layout). A detector makes
thousands of decisions: thresholds, top-k, NMS. A few are so close that rounding changes them. So
detections must agree, except for a few, and each of these is explained in one of two ways. It
depends on a decision of the reference with a relative margin below ``MARGIN``. Or every difference
of its image vanishes when our RPN and RoI heads get the reference's feature maps: then it comes
from the rounding of the backbone's convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from maskrcnn_scratch.faster_rcnn import FasterRCNN
from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.parity.compare import Check
from maskrcnn_scratch.parity.reference import Recording
from maskrcnn_scratch.parity.stages import level_mapper
from maskrcnn_scratch.structures import Result, StageOutputs

BOX_TOLERANCE = 1e-2  # pixels
SCORE_TOLERANCE = 1e-5
MASK_TOLERANCE = 1e-4
MARGIN = 1e-5  # of a decision, relative
MAX_DIFFERENT = 0.005  # of all detections


@dataclass(frozen=True)
class Difference:
    """A detection that the other model does not have.

    Attributes:
        image: index in the batch.
        what: the detection and how much it differs.
        margin: of the closest decision that it depends on, relative.
        decision: which decision.
    """

    image: int
    what: str
    margin: float
    decision: str


@dataclass
class Agreement:
    """How two sets of results compare.

    Attributes:
        detections: of the reference.
        boxes, scores, masks: largest difference over the matched ones.
        differences: the detections that did not match.
    """

    detections: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    differences: list[Difference] = field(default_factory=list)

    def unexplained(self) -> list[Difference]:
        return [difference for difference in self.differences if difference.margin > MARGIN]


@torch.no_grad()
def model_check(
    name: str, model: FasterRCNN, images: Sequence[Tensor], recording: Recording
) -> tuple[Check, Agreement]:
    """Compares the results of ``model`` on a batch with those of the reference."""
    agreement = _compare(model.run_stages(images), recording)
    if agreement.unexplained():
        features = recording.outputs["backbone"]
        hook = model.get_submodule("backbone").register_forward_hook(lambda *_: dict(features))
        try:
            remaining = _compare(model.run_stages(images), recording)
        finally:
            hook.remove()
        remain = {difference.image for difference in remaining.differences}
        agreement.differences = [
            replace(difference, margin=0.0, decision="vanishes on the reference's feature maps")
            if difference.margin > MARGIN and difference.image not in remain
            else difference
            for difference in agreement.differences
        ]
    return summarize(name, [agreement]), agreement


def _compare(ours: StageOutputs, recording: Recording) -> Agreement:
    agreement = Agreement()
    explain = partial(_explain, recording=recording)
    for n, (mine, theirs) in enumerate(zip(ours.results, recording.results, strict=True)):
        match_image(n, mine, theirs, agreement, explain)
    return agreement


def summarize(name: str, agreements: Sequence[Agreement]) -> Check:
    """One check for several batches; ``MAX_DIFFERENT`` applies to their detections together."""
    detections = sum(agreement.detections for agreement in agreements)
    differences = [d for agreement in agreements for d in agreement.differences]
    unexplained = [d for agreement in agreements for d in agreement.unexplained()]
    boxes, scores, masks = (
        max((getattr(agreement, field) for agreement in agreements), default=0.0)
        for field in ("boxes", "scores", "masks")
    )
    few = len(differences) <= MAX_DIFFERENT * max(detections, 1 / MAX_DIFFERENT)
    note = f"{detections} detections, {len(differences)} differ; boxes {boxes:.0e} px, "
    note += f"scores {scores:.0e}, masks {masks:.0e}"
    return Check(
        "model",
        name,
        boxes,
        max(boxes / BOX_TOLERANCE, scores / SCORE_TOLERANCE, masks / MASK_TOLERANCE),
        "1e-2 px, 1e-5, 1e-4",
        few and not unexplained,
        note,
    )


def match_image(
    n: int,
    mine: Result,
    theirs: Result,
    agreement: Agreement,
    explain: Callable[[int, str, Tensor, Tensor, Tensor], Difference],
) -> None:
    """Matches the detections of image ``n`` one to one, and adds them to ``agreement``.

    Args:
        explain: makes a ``Difference`` of (n, what, box, label, score) of one without counterpart.
    """
    agreement.detections += len(theirs["boxes"])
    free = torch.ones(len(mine["boxes"]), dtype=torch.bool, device=mine["boxes"].device)
    for k, (box, label, score) in enumerate(
        zip(theirs["boxes"], theirs["labels"], theirs["scores"], strict=True)
    ):
        distance = (mine["boxes"] - box).abs().amax(1) if len(free) else mine["scores"]
        distance = distance.masked_fill(~free | (mine["labels"] != label), torch.inf)
        best = int(distance.argmin()) if len(distance) else -1
        what = f"{int(label)} at {[round(x, 1) for x in box.tolist()]}, score {float(score):.4f}"
        if best < 0 or float(distance[best]) > BOX_TOLERANCE:
            agreement.differences.append(explain(n, f"{what}: missing", box, label, score))
            continue
        free[best] = False
        score_error = float((mine["scores"][best] - score).abs())
        mask_error = 0.0
        if "masks" in theirs:
            mask_error = float((mine["masks"][best] - theirs["masks"][k]).abs().max())
        if score_error > SCORE_TOLERANCE or mask_error > MASK_TOLERANCE:
            what += f": score differs by {score_error:.0e}, mask by {mask_error:.0e}"
            agreement.differences.append(explain(n, what, box, label, score))
            continue
        agreement.boxes = max(agreement.boxes, float(distance[best]))
        agreement.scores = max(agreement.scores, score_error)
        agreement.masks = max(agreement.masks, mask_error)
    for k in free.nonzero().flatten().tolist():
        box, label, score = mine["boxes"][k], mine["labels"][k], mine["scores"][k]
        what = f"{int(label)} at {[round(x, 1) for x in box.tolist()]}: only in ours"
        agreement.differences.append(explain(n, what, box, label, score))


def _explain(
    n: int, what: str, box: Tensor, label: Tensor, score: Tensor, recording: Recording
) -> Difference:
    """Finds the closest decision of the reference that this detection depends on."""
    margin, decision = min(_margins(n, box, label, score, recording))
    return Difference(n, what, margin, decision)


def _margins(
    n: int, box: Tensor, label: Tensor, score: Tensor, recording: Recording
) -> Iterator[tuple[float, str]]:
    heads, result = recording.reference.roi_heads, recording.results[n]
    yield abs(float(score) - heads.score_thresh), "score threshold"
    if len(result["scores"]) == heads.detections_per_img:
        yield abs(float(score - result["scores"][-1])), "last detection kept"

    same = result["boxes"][(result["labels"] == label) & (result["scores"] >= score)]
    if len(same):
        iou = box_iou(box[None], same)[0]
        yield float((iou - heads.nms_thresh).abs().min()), "NMS of detections"

    # The box that is pasted: enlarged about its centre, then truncated to integer pixels.
    exact = box.double()
    center, half = (exact[:2] + exact[2:]) / 2, (exact[2:] - exact[:2]) / 2 * (30 / 28)
    corners = torch.cat((center - half, center + half))
    margins = (corners - corners.round()).abs() / corners.abs().clamp(min=1)
    yield float(margins.min()), "truncation of the pasted box"

    # The pyramid level it is pooled from, and that of the proposals it overlaps.
    proposals = recording.outputs["rpn"][0][n]
    resized = recording.outputs["roi_heads"][0][n]["boxes"]
    levels = {"box": proposals} | ({"mask": resized} if "masks" in result else {})
    for name, boxes in levels.items():
        mapper = level_mapper(recording, f"{name}_roi_pool")
        side = ((boxes[:, 2:] - boxes[:, :2]).prod(1).double().sqrt() / mapper.s0).log2()
        if len(side):
            yield float((side + mapper.eps - side.round()).abs().min()), f"{name} pooling level"

    yield from _rpn_margins(n, recording)


def _rpn_margins(n: int, recording: Recording) -> Iterator[tuple[float, str]]:
    """The closest decisions about proposals: top-k per level, and NMS."""
    rpn = recording.reference.rpn
    objectness, _ = recording.outputs["rpn.head"]
    for level in objectness:
        logits = level[n].flatten().sort(descending=True).values
        k = rpn.pre_nms_top_n()
        if len(logits) > k:
            yield float(logits[k - 1] - logits[k]), "top-k per level"
    boxes = recording.outputs["rpn"][0][n]
    iou = box_iou(boxes, boxes).triu(diagonal=1)
    yield float((iou - rpn.nms_thresh).abs().min()), "NMS of proposals"
