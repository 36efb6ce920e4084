"""One run of the model with the time and memory of each stage.

A copy of the model shares every part with it, except that the stages' functions are timed. The
model itself is not changed, and its own calls are not timed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.structures import StageOutputs

# Path of a part, and its function that does the stage's work. Nested ones are timed apart.
TIMED = (
    ("transform", "forward"),
    ("", "extract_features"),
    ("rpn", "forward"),
    ("rpn.anchor_generator", "forward"),
    ("rpn", "propose"),
    ("roi_heads", "detect_boxes"),
    ("roi_heads.box_roi_pool", "forward"),
    ("roi_heads.box_head", "forward"),
    ("roi_heads.box_predictor", "forward"),
    ("roi_heads", "detect_masks"),
    ("transform", "postprocess"),
)


@dataclass
class Cost:
    """Of one function: seconds without those of nested ones, and peak memory on a GPU in bytes."""

    seconds: float = 0.0
    peak: int | None = None


@dataclass
class Measured:
    """What a run gave, and what it cost: ``costs`` by "path.function", as in ``TIMED``."""

    stages: StageOutputs
    costs: dict[str, Cost]


class StageError(RuntimeError):
    """A part of the model raised; the message names it."""


@torch.no_grad()
def run_measured(model: GeneralizedRCNN, image: Tensor, result_size: tuple[int, int]) -> Measured:
    """``model.run_stages([image])``, measured at its second run.

    Args:
        image: ``[3, H, W]`` in 0-1, on the model's device.
        result_size: (height, width) that ``results`` are for; the image's own, or smaller where
            masks of the whole image would not fit into memory.

    Raises:
        StageError: a part of the model raised, naming it.
    """
    for clock in (_Clock(image.device), _Clock(image.device)):  # the first run is slower
        timed = _timed_copy(model, clock)
        batch, _ = timed.transform([image])
        stages = timed.run_batch(batch)
        stages.results = timed.transform.postprocess(stages.detections, batch.sizes, [result_size])
    return Measured(stages, clock.costs)


@dataclass
class _Clock:
    device: torch.device
    costs: dict[str, Cost] = field(default_factory=dict)
    nested: list[float] = field(default_factory=list)

    @contextmanager
    def span(self, name: str, part: object) -> Iterator[None]:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self.nested.append(0.0)
        started = time.perf_counter()
        try:
            yield
        except StageError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise StageError(f"{name} of {type(part).__name__} raised {reason}") from error
        finally:
            if on_gpu:
                torch.cuda.synchronize(self.device)
            elapsed = time.perf_counter() - started
            inner = self.nested.pop()
            if self.nested:
                self.nested[-1] += elapsed
            cost = self.costs.setdefault(name, Cost())
            cost.seconds += elapsed - inner
            if on_gpu:
                peak = torch.cuda.max_memory_allocated(self.device)
                cost.peak = max(cost.peak or 0, peak)

    def timed(self, name: str, function: Callable[..., Any], part: object) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.span(name, part):
                return function(*args, **kwargs)

        return run


def _timed_copy(model: GeneralizedRCNN, clock: _Clock) -> GeneralizedRCNN:
    copied = _shallow_copy(model)
    parts: dict[str, Any] = {"": copied}
    for path, function in TIMED:
        part = _copy_part(parts, path)
        if part is None or not hasattr(part, function):
            continue
        name = f"{path}.{function}".strip(".").removesuffix(".forward")
        # The function is of the copy, and so finds the copies of the parts that it calls.
        object.__setattr__(part, function, clock.timed(name, getattr(part, function), part))
    return copied


def _copy_part(parts: dict[str, Any], path: str) -> Any:
    """The copy of the module at ``path``, put into the copy of its owner; None for other parts."""
    if path not in parts:
        owner_path, _, name = path.rpartition(".")
        owner = parts.get(owner_path)
        part = None if owner is None else getattr(owner, name, None)
        if isinstance(part, nn.Module):
            part = _shallow_copy(part)
            parts[owner_path]._modules[name] = part
            parts[path] = part
        else:
            parts[path] = None
    return parts[path]


def _shallow_copy(module: Any) -> Any:
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def tensor_summary(name: str, tensor: Tensor) -> dict[str, Any]:
    """Name, shape, dtype and bytes of a tensor, for a table."""
    return {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "bytes": tensor.numel() * tensor.element_size(),
    }
