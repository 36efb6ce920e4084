"""Compiles the parts of a model for training."""

from __future__ import annotations

from typing import Any


def compile_parts(model: Any) -> None:
    """Compiles backbone and heads of a ``GeneralizedRCNN`` in place, each at its first call.

    The code between them has few, large operations, with sizes that change at every step.
    """
    heads = model.roi_heads
    parts = (heads.box_head, heads.box_predictor, heads.mask_head, heads.mask_predictor)
    for part in (model.backbone, model.rpn.head, *parts):
        if part is not None:
            part.compile()
