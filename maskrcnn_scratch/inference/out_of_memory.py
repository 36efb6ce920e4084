"""What to do where memory ran out: which stage it was, and what makes it need less."""

from __future__ import annotations

import traceback
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from maskrcnn_scratch.structures import Result

_SMALLER = "give fewer images at a time (batch_size), or smaller ones (the model's min_size)"

# By the method that was running, the outermost first: the stage and the advice.
_STAGES = {
    "run_batch": ("the model", _SMALLER),
    "extract_features": ("the backbone", _SMALLER),
    "propose": ("the proposals", _SMALLER),
    "detect_boxes": ("the box head", f"{_SMALLER}, or lower rpn_post_nms_top_n_test"),
    "detect_masks": ("the mask head", f"{_SMALLER}, or lower box_detections_per_img"),
    "postprocess": (
        "pasting the masks",
        "give fewer images at a time (batch_size), raise box_score_thresh or lower "
        "box_detections_per_img, or paste yourself what you need: run_batch leaves the masks in "
        "the frames of their boxes",
    ),
}
_CPU_MESSAGES = ("can't allocate memory", "not enough memory")


def detect_naming_stage(model: nn.Module, images: Iterable[Tensor]) -> list[Result]:
    """``model(list(images))``, whose memory errors say in which stage.

    The allocator's error is let go, with all the tensors that its traceback holds: their memory is
    free again, and the model can be used on.

    Raises:
        torch.OutOfMemoryError: with the stage, and what would need less.
    """
    try:
        return model(list(images))
    except RuntimeError as error:
        cuda = isinstance(error, torch.OutOfMemoryError)
        if not cuda and not any(message in str(error) for message in _CPU_MESSAGES):
            raise
        names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
        reached = [stage for name, stage in _STAGES.items() if name in names]
        stage, advice = reached[-1] if reached else ("the model", _SMALLER)
        reason = str(error).splitlines()[0]
    raise torch.OutOfMemoryError(f"out of memory in {stage}: {advice} ({reason})")
