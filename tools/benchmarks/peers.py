"""Runtimes that users pick for speed on a CPU: onnxruntime and OpenVINO, on our exported model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.export import export_onnx
from maskrcnn_scratch.inference import optimize
from maskrcnn_scratch.interfaces import Backbone
from tools.benchmarks.clock import Clock, Timing


@torch.no_grad()
def time_peers(clock: Clock, model: MaskRCNN, image: Tensor) -> Iterator[Timing]:
    """Ours, compiled and with Winograd convolutions, against each peer in float32.

    A peer that is not installed or cannot run the graph gets a row of NaN that says why.
    """
    batch, _ = model.transform([image])
    compiled, winograd = optimize(model, compile=True), optimize(model, winograd=True)
    options: dict[str, Any] = {"freezing": True}
    backbone_fp32 = torch.compile(optimize(model).backbone, options=options)
    backbone_bf16 = torch.compile(optimize(model, dtype=torch.bfloat16).backbone, options=options)
    with tempfile.TemporaryDirectory() as folder:

        @cache
        def complete() -> Path:
            file = Path(folder) / "model.onnx"
            size = image.shape[-2], image.shape[-1]
            export_onnx(model, file, size, images=[image])
            return file

        @cache
        def backbone() -> Path:
            file = Path(folder) / "backbone.onnx"
            torch.onnx.export(
                Maps(model.backbone).eval(), (batch.tensors,), file, opset_version=18, dynamo=True,
                verbose=False,
            )  # fmt: skip
            return file

        for runtime, load in (("onnxruntime", onnxruntime_session), ("OpenVINO", openvino_model)):
            for name, ours, export, argument in (
                ("complete model, compiled", lambda: compiled([image]), complete, image),
                ("complete model, Winograd", lambda: winograd([image]), complete, image),
                (
                    "backbone and FPN, compiled",
                    lambda: backbone_fp32(batch.tensors),
                    backbone,
                    batch.tensors,
                ),
            ):
                yield time_peer(
                    clock, "peers", f"{name}, against {runtime}", ours,
                    partial(load, export, argument, "f32"),
                )  # fmt: skip
        yield time_peer(
            clock, "peers", "backbone and FPN in bfloat16, compiled, against OpenVINO",
            lambda: backbone_bf16(batch.tensors),
            lambda: openvino_model(backbone, batch.tensors, "bf16"),
        )  # fmt: skip


def time_peer(
    clock: Clock,
    group: str,
    title: str,
    ours: Callable[[], object],
    load: Callable[[], Callable[[], object]],
) -> Timing:
    """Ours against what ``load`` returns; a row of NaN with the reason where it fails."""
    try:
        return clock.pair(group, title, ours, load())
    except ModuleNotFoundError as error:
        reason = f"{error.name} is not installed"
    except Exception as error:  # of the runtime, of any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    nan = float("nan")
    return Timing(group, f"{title}: {reason}", nan, nan, nan, (nan, nan))


class Maps(nn.Module):
    """The feature maps as a tuple."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(images).values())


def onnxruntime_session(
    export: Callable[[], Path], argument: Tensor, precision: str
) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(export()), options, ["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: argument.contiguous().numpy()}
    return lambda: session.run(None, inputs)


def openvino_model(
    export: Callable[[], Path], argument: Tensor, precision: str
) -> Callable[[], object]:
    os.environ.setdefault("OPENVINO_LOG_LEVEL", "0")
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = openvino.Core().compile_model(str(export()), "CPU", settings)
    request, pixels = compiled.create_infer_request(), argument.contiguous().numpy()
    return lambda: request.infer([pixels])
