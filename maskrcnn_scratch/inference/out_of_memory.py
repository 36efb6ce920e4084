"""Out-of-memory errors that name the stage and say how to reduce its memory."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

_SMALLER = "give fewer images at a time (batch_size), or smaller ones (the model's min_size)"

# (stage, advice) by the method that was running, outermost first.
_STAGES = {
    "run_batch": ("the model", _SMALLER),
    "extract_features": ("the backbone", _SMALLER),
    "propose": ("the proposals", _SMALLER),
    "detect_boxes": ("the box head", f"{_SMALLER}, or lower rpn_post_nms_top_n_test"),
    "detect_masks": ("the mask head", f"{_SMALLER}, or lower box_detections_per_img"),
    "postprocess": (
        "pasting the masks",
        "give fewer images at a time (batch_size), raise box_score_thresh or lower "
        "box_detections_per_img, or paste the masks yourself: run_batch returns them as M x M "
        "probabilities inside their boxes",
    ),
}
_CPU_MESSAGES = ("can't allocate memory", "not enough memory")


def naming_stage(function: Callable[[], T], stage: str = "the model", advice: str = _SMALLER) -> T:
    """``function()``; an out-of-memory error names the stage.

    The allocator's error is not chained: its traceback would keep the tensors of the failed run
    alive. Their memory is free again, and the model can still be used.

    Args:
        stage: its name if no method of ``_STAGES`` was running.
        advice: how to reduce the memory of that stage.

    Raises:
        torch.OutOfMemoryError: with the stage, and how to reduce its memory.
    """
    try:
        return function()
    except (RuntimeError, MemoryError) as error:
        # Python, numpy and C++ raise a MemoryError; torch raises a RuntimeError on the CPU.
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(message in str(error) for message in _CPU_MESSAGES):
            raise
        names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
        reached = [found for name, found in _STAGES.items() if name in names]
        stage, advice = reached[-1] if reached else (stage, advice)
        reason = str(error).partition("\n")[0] or type(error).__name__
    raise torch.OutOfMemoryError(f"out of memory in {stage}: {advice} ({reason})")
