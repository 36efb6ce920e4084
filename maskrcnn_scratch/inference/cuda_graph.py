"""CUDA graphs, one per padded size: a single launch runs all kernels of a batch."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

from maskrcnn_scratch.structures import ImageList, StageOutputs

# Runs the captured graph on other images of the same padded size. The next run overwrites its
# outputs.
Replay: TypeAlias = Callable[[ImageList], StageOutputs]
Capture: TypeAlias = Callable[[Callable[[ImageList], StageOutputs], ImageList], Replay]

WARM_UP_RUNS = 3  # libraries choose their kernels, anchors are cached


class CUDAGraphs:
    """Replaces ``model.run_batch`` by captured graphs, one per padded size.

    The first batch of a size captures its graph: ``WARM_UP_RUNS`` runs, the capture and the first
    replay. If a component cannot be captured, because it synchronises with the host or allocates
    pinned memory, a warning gives the reason and the model runs eagerly from then on. Moving the
    model or replacing its weights discards all graphs; weights changed in place need no new
    capture. Detections are copies; the next batch of the same size overwrites the other stages.

    Args:
        model: in eval mode; batches must be on its device.
        max_sizes: number of graphs kept; beyond it the least recently used is dropped. All graphs
            share one memory pool.
        capture: captures one graph.
    """

    def __init__(
        self, model: nn.Module, *, max_sizes: int = 8, capture: Capture | None = None
    ) -> None:
        self.model = model
        self.run_eagerly: Callable[[ImageList], StageOutputs] = model.run_batch  # type: ignore[assignment]
        self.max_sizes = max_sizes
        self.capture = capture or GraphCapture()
        self.graphs: OrderedDict[tuple[object, ...], Replay] = OrderedDict()
        self.captured_weights: list[int] = []
        self.gave_up = False

    def __call__(self, batch: ImageList) -> StageOutputs:
        if self.gave_up:
            return self.run_eagerly(batch)
        weights = [tensor.data_ptr() for tensor in self.model.state_dict().values()]
        if weights != self.captured_weights:
            self.graphs.clear()
            self.captured_weights = weights
        images = batch.tensors
        key = (*images.shape, images.dtype, images.device)
        if key not in self.graphs:
            try:
                self.graphs[key] = self.capture(self.run_eagerly, batch)
            except RuntimeError as error:
                self.gave_up = True
                warnings.warn(f"the model runs without CUDA graphs: {error}", stacklevel=2)
                return self.run_eagerly(batch)
            if len(self.graphs) > self.max_sizes:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        stages = self.graphs[key](batch)
        own = copy.copy(stages)
        own.detections = copy.copy(stages.detections)
        for name, value in vars(own.detections).items():
            setattr(own.detections, name, None if value is None else value.clone())
        return own


class GraphCapture:
    """Captures with ``torch.cuda.graph``.

    All graphs share one memory pool: no graph reads what another has written.
    """

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, run: Callable[[ImageList], StageOutputs], batch: ImageList) -> Replay:
        if batch.tensors.device.type != "cuda":
            raise RuntimeError(f"the images are on {batch.tensors.device}, not on a GPU")
        held = ImageList(batch.tensors.clone(), batch.sizes.clone())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                run(held)
        torch.cuda.current_stream().wait_stream(stream)
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            stages = run(held)

        def replay(other: ImageList) -> StageOutputs:
            held.tensors.copy_(other.tensors)
            held.sizes.copy_(other.sizes)
            graph.replay()
            return stages

        return replay
