"""The stages as the report shows them: titles, papers, what to look for, and the source lines."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.measure import Cost, tensor_summary
from maskrcnn_scratch.roi_heads.detections import select_detections
from maskrcnn_scratch.rpn.proposals import select_proposals
from maskrcnn_scratch.structures import StageOutputs

PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Step:
    """One stage of the report.

    Attributes:
        id, title, paper: paper and section that it comes from.
        look: one sentence of what to look for.
        costs: keys of ``Measured.costs`` that belong to it.
        tensors: what it gives, by attribute path in ``StageOutputs``.
    """

    id: str
    title: str
    paper: str
    look: str
    costs: tuple[str, ...]
    tensors: tuple[str, ...] = ()


STEPS = (
    Step(
        "transform",
        "Resize, normalise, pad",
        "Mask R-CNN, section 3.1",
        "See how many pixels the smallest object has left after the resize.",
        ("transform",),
        ("images.tensors",),
    ),
    Step(
        "features",
        "Feature pyramid",
        "FPN, section 3",
        "Fine levels show edges and texture; coarse levels show whole objects as one colour.",
        ("extract_features",),
        ("features",),
    ),
    Step(
        "anchors",
        "Anchors",
        "Faster R-CNN, section 3.1.1; FPN, section 4.1",
        "Click an object: at least one of its anchors should have about its size and shape.",
        ("rpn.anchor_generator",),
        ("anchors",),
    ),
    Step(
        "objectness",
        "RPN: objectness and deltas",
        "Faster R-CNN, section 3.1",
        "Each object should be bright on the level that fits its size, and dark on the others.",
        ("rpn",),
        ("objectness", "pred_bbox_deltas"),
    ),
    Step(
        "proposals",
        "Proposals: top-k and NMS",
        "Faster R-CNN, section 3.3",
        "One good box per object should survive; the boxes around it should be suppressed by it.",
        ("rpn.propose",),
        ("proposals.boxes", "proposals.scores", "proposals.anchor_indices"),
    ),
    Step(
        "roi_levels",
        "Which level each RoI is pooled from",
        "FPN, section 4.2, Eq. 1",
        "A box that lies near a border changes its level when it grows by a few pixels.",
        (),
    ),
    Step(
        "roi_align",
        "RoIAlign",
        "Mask R-CNN, section 3, RoIAlign",
        "The sampling points need not fall on pixels; nothing is rounded.",
        ("roi_heads.box_roi_pool",),
    ),
    Step(
        "box_head",
        "Box head: classes and refinement",
        "Fast R-CNN, section 2; Mask R-CNN, section 3, Fig. 4",
        "The true class should stand far above the rest, and the arrow should end on the object.",
        ("roi_heads.box_head", "roi_heads.box_predictor"),
        ("class_logits", "box_regression"),
    ),
    Step(
        "class_nms",
        "Score threshold, class-wise NMS, cap",
        "Fast R-CNN, section 2.3",
        "Boxes of different classes do not suppress each other, even where they lie on one object.",
        ("roi_heads.detect_boxes",),
        ("detections.boxes", "detections.scores", "detections.labels"),
    ),
    Step(
        "mask_head",
        "Mask head",
        "Mask R-CNN, section 3, Fig. 4",
        "Each class has a mask of its own; the one of the predicted class is used.",
        ("roi_heads.detect_masks",),
        ("detections.masks",),
    ),
    Step(
        "result",
        "Result",
        "Mask R-CNN, section 3.1, Inference",
        "Choose a detection here to see its origin in every stage above.",
        ("transform.postprocess",),
    ),
)


def describe(
    step: Step, model: GeneralizedRCNN, stages: StageOutputs, costs: dict[str, Cost]
) -> dict[str, Any]:
    """The stage with its tensors, source lines, time and memory of this run."""
    spent = [costs[name] for name in step.costs if name in costs]
    peaks = [cost.peak for cost in spent if cost.peak is not None]
    return {
        "id": step.id,
        "title": step.title,
        "paper": step.paper,
        "look": step.look,
        "seconds": sum(cost.seconds for cost in spent) if spent else None,
        "peak": max(peaks, default=None),
        "tensors": [entry for path in step.tensors for entry in _tensors(path, stages)],
        "sources": [_source(function) for function in _functions(step.id, model)],
    }


def _tensors(path: str, stages: StageOutputs) -> list[dict[str, Any]]:
    value: Any = stages
    for name in path.split("."):
        value = getattr(value, name)
    if isinstance(value, dict):
        return [tensor_summary(f"{path}[{name!r}]", tensor) for name, tensor in value.items()]
    return [] if value is None else [tensor_summary(path, value)]


def _functions(step: str, model: GeneralizedRCNN) -> list[Any]:
    """What does the work of a stage: the functions of the model's own parts."""
    rpn, heads, transform = model.rpn, model.roi_heads, model.transform
    parts: dict[str, tuple[Any, ...]] = {
        "transform": (transform, getattr(transform, "batch_images", None)),
        "features": (model.backbone, getattr(model.backbone, "fpn", None)),
        "anchors": (getattr(rpn, "anchor_generator", None),),
        "objectness": (getattr(rpn, "head", None),),
        "proposals": (select_proposals, getattr(rpn, "nms", None)),
        "roi_levels": (getattr(heads.box_roi_pool, "map_levels", None),),
        "roi_align": (heads.box_roi_pool,),
        "box_head": (heads.box_head, heads.box_predictor),
        "class_nms": (select_detections, getattr(heads, "nms", None)),
        "mask_head": (heads.mask_head, heads.mask_predictor),
        "result": (transform.postprocess, getattr(transform, "paste", None)),
    }
    return [part for part in parts[step] if part is not None]


def _source(part: Any) -> dict[str, Any]:
    """Name, file and line of a function, or of what a module does when it is called."""
    function = part
    if not inspect.isroutine(part):
        function = getattr(type(part), "forward", None) or type(part).__call__
        if getattr(function, "__module__", "").startswith("torch."):  # nn.Sequential's
            function = type(part)
    name = getattr(function, "__qualname__", type(part).__name__)
    try:
        file = Path(inspect.getsourcefile(function) or "")
        line = inspect.getsourcelines(function)[1]
    except (TypeError, OSError):  # built in, or typed into an interpreter
        return {"name": name, "file": None, "line": None}
    inside = file.is_relative_to(PACKAGE)
    shown = file.relative_to(PACKAGE.parent).as_posix() if inside else file.name
    return {"name": name, "file": shown, "line": line}
