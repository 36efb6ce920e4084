"""What a model with the part in it can do: each is tried and stated.

A capability that is missing is no failure. A file that computes something else is.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from maskrcnn_scratch.component_check.host import images_and_targets
from maskrcnn_scratch.component_check.in_model import (
    compare_outputs,
    features_and_logits,
    num_classes,
)
from maskrcnn_scratch.component_check.result import CheckFailed, CheckResult, describe, require
from maskrcnn_scratch.export import ExportOptions, export_to_file
from maskrcnn_scratch.export.to_file import Format
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inference.optimize import optimize

BF16_TOLERANCE = 0.1  # of the norm of each output; a ResNet-50-FPN was measured at 0.03


class NotTried(Exception):
    """The capability cannot be tried here; the message says why."""


def capabilities(
    model: GeneralizedRCNN, side: int, *, training_only: bool, quick: bool
) -> Iterator[CheckResult]:
    """One result per capability.

    Args:
        model: in eval mode.
        side: of the images, in pixels.
        training_only: whether the part is not used in inference.
        quick: whether those that take longer than a second are skipped.
    """
    skip = "the part is used in training only" if training_only else "quick" if quick else ""
    yield _capability("eager", lambda: eager(model, side))
    yield _capability("bf16", lambda: bf16_losses(model, side) if training_only
                      else bf16(model, side))  # fmt: skip
    yield _capability("DDP", lambda: ddp(model, side))
    yield _capability("compile", lambda: compiles(model, side), skip)
    for format in ("pt2", "onnx"):
        yield _capability(format, lambda format=format: exports(model, side, format), skip)  # type: ignore[misc]
    yield _capability("graph", lambda: cuda_graph(model, side), skip if training_only else "")


def _capability(name: str, attempt: Callable[[], str], not_tried: str = "") -> CheckResult:
    name = f"capability: {name}"
    if not_tried:
        return CheckResult(name, "not tried", not_tried)
    try:
        # Conversions warn about what is slow or new; here only what works is of interest.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CheckResult(name, "yes", attempt())
    except NotTried as reason:
        return CheckResult(name, "not tried", str(reason))
    except CheckFailed as error:
        return CheckResult(name, "FAIL", str(error))
    except Exception as error:
        return CheckResult(name, "no", describe(error))


@torch.no_grad()
def eager(model: GeneralizedRCNN, side: int) -> str:
    images, _ = images_and_targets(1, side, num_classes(model))
    return f"{len(model(images)[0]['scores'])} detections"


@torch.no_grad()
def bf16(model: GeneralizedRCNN, side: int) -> str:
    """Networks in bfloat16, boxes in float32."""
    images, _ = images_and_targets(1, side, num_classes(model))
    half = optimize(model, dtype=torch.bfloat16)
    half(images)
    found, expected = (features_and_logits(each, images) for each in (half, model))
    return compare_outputs(found, expected, BF16_TOLERANCE)


def bf16_losses(model: GeneralizedRCNN, side: int) -> str:
    """Training under autocast."""
    images, targets = images_and_targets(1, side, num_classes(model))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(images, targets)
    bad = [name for name, loss in losses.items() if not loss.isfinite()]
    require(not bad, f"not finite under autocast: {', '.join(bad)}")
    return "losses are finite under autocast"


def ddp(model: GeneralizedRCNN, side: int) -> str:
    """Two steps of ``DistributedDataParallel``, which raises at parameters without gradient."""
    if not dist.is_available() or dist.is_initialized():
        raise NotTried("torch.distributed is missing or in use")
    model = copy.deepcopy(model).train()
    images, targets = images_and_targets(1, side, num_classes(model))
    store = dist.HashStore()  # type: ignore[attr-defined]
    try:
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    except Exception as error:
        raise NotTried(f"no process group: {describe(error)}") from error
    try:
        parallel = DistributedDataParallel(model)
        for _ in range(2):
            losses = parallel(images, targets)
            sum(losses.values(), start=torch.zeros(())).backward()
    finally:
        dist.destroy_process_group()
    return "two steps in one process"


@torch.no_grad()
def compiles(model: GeneralizedRCNN, side: int) -> str:
    """One graph from the padded batch to the padded detections; no code is generated."""
    images, _ = images_and_targets(1, side, num_classes(model))
    batch = model.run_stages(images).images
    torch.compiler.reset()
    torch.compile(model.run_batch, fullgraph=True, backend="aot_eager")(batch)
    return "one graph (backend aot_eager; generating code was not tried)"


@torch.no_grad()
def exports(model: GeneralizedRCNN, side: int, format: Format) -> str:
    """The file is read back and its detections are compared."""
    images, _ = images_and_targets(1, side, num_classes(model))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        try:
            report = export_to_file(model, path, ExportOptions((side, side)), format, images)
        except ImportError as error:
            raise NotTried(str(error)) from error
    errors = {name: f"{value:.0e}" for name, value in report.trials[0].errors.items()}
    detail = f"{report.verdict}, {sum(report.trials[0].num_detections)} detections, {errors}"
    require(report.verdict != "beyond tolerance", detail)
    return detail


@torch.no_grad()
def cuda_graph(model: GeneralizedRCNN, side: int) -> str:
    if not torch.cuda.is_available():
        raise NotTried("there is no GPU")
    images, _ = images_and_targets(1, side, num_classes(model))
    on_gpu: Any = optimize(copy.deepcopy(model).cuda(), cuda_graph=True)
    on_gpu([image.cuda() for image in images])
    if on_gpu.run_batch.failed:
        raise RuntimeError("the batch ran without CUDA graph")
    return "captured"
