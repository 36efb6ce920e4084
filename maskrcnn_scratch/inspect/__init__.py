"""See inside the model: where a detection comes from, where an object was lost, and a report.

All of it is computed from what ``model.run_stages(images)`` returns. Nothing is collected while the
model runs::

    stages = model.run_stages(images)
    print(provenance(model, stages, image=0, detection=0))
    for missed in explain_missed(model, stages, targets)[0]:
        print(missed.object, missed.fate.value)
    plot_anchors(model, stages, x=200, y=120)

``report.write_report`` writes the page of ``maskrcnn inspect``.
"""

from __future__ import annotations

from maskrcnn_scratch.inspect.levels import NOT_AVAILABLE
from maskrcnn_scratch.inspect.missed import Fate, ObjectFate, explain_missed, explain_objects
from maskrcnn_scratch.inspect.plots import (
    plot_anchors,
    plot_feature_maps,
    plot_masks,
    plot_objectness,
    plot_proposals,
    plot_roi_align,
)
from maskrcnn_scratch.inspect.provenance import Provenance, provenance
from maskrcnn_scratch.inspect.selection import Selection, box_selection, rpn_selection
from maskrcnn_scratch.inspect.suppression import Suppression, suppressed_by
from maskrcnn_scratch.inspect.targets import RPNTargets, rpn_targets

__all__ = [
    "NOT_AVAILABLE",
    "Fate",
    "ObjectFate",
    "Provenance",
    "RPNTargets",
    "Selection",
    "Suppression",
    "box_selection",
    "explain_missed",
    "explain_objects",
    "plot_anchors",
    "plot_feature_maps",
    "plot_masks",
    "plot_objectness",
    "plot_proposals",
    "plot_roi_align",
    "provenance",
    "rpn_selection",
    "rpn_targets",
    "suppressed_by",
]
