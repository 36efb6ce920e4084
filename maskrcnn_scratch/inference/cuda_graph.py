"""CUDA graphs, one per padded size: a single launch runs all kernels of a batch.

Nothing here has run on a GPU yet. The logic around the capture (keys, fallbacks, streams, copies)
is tested on the CPU with a stand-in for ``torch.cuda``.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from maskrcnn_scratch.structures import ImageList, StageOutputs

# Runs the captured graph on other images of the same padded size. Its outputs are overwritten by
# the next run of any size: the graphs share their memory.
Replay: TypeAlias = Callable[[ImageList], StageOutputs]
Capture: TypeAlias = Callable[[Callable[[ImageList], StageOutputs], ImageList], Replay]

# Libraries choose their kernels, anchors are cached, a compiled function is compiled: nothing of it
# may be left for the capture.
WARM_UP_RUNS = 3


class CUDAGraphs:
    """Replaces ``model.run_batch`` by captured graphs, one per padded size.

    The first batch of a size captures its graph: ``WARM_UP_RUNS`` runs, the capture and the first
    replay. A graph is captured anew when a threshold, a top-n or a component of the RPN or the RoI
    heads was changed, and all are when weights were moved or replaced; weights changed in place
    need nothing. A size that cannot be captured (a component synchronises with the host, memory is
    full) gives one warning and runs without one from then on; other sizes are not affected.

    Everything that is returned is a copy, so that no later run overwrites it.

    Args:
        model: in eval mode; batches must be on its device. Its ``run_batch`` may be compiled.
        max_sizes: number of graphs kept; beyond it the least recently used is dropped.
        capture: captures one graph.
    """

    def __init__(
        self, model: nn.Module, *, max_sizes: int = 8, capture: Capture | None = None
    ) -> None:
        self.model = model
        self.run_without: Callable[[ImageList], StageOutputs] = model.run_batch  # type: ignore[assignment]
        self.max_sizes = max_sizes
        self.capture = capture or GraphCapture()
        self.graphs: OrderedDict[tuple[object, ...], Replay] = OrderedDict()
        self.failed: set[tuple[object, ...]] = set()
        self._tables: list[Mapping[str, Any]] = []
        self._weights: list[int] = []

    def __call__(self, batch: ImageList) -> StageOutputs:
        self._discard_graphs_of_other_weights()
        images = batch.tensors
        size = (*images.shape, images.dtype, images.device)
        if size in self.failed:
            return self.run_without(batch)
        stages = (self.model.get_submodule(name) for name in ("rpn", "roi_heads"))
        key = (*size, *(setting for stage in stages for setting in _settings(stage)))
        if key not in self.graphs:
            try:
                self.graphs[key] = self.capture(self.run_without, batch)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                self.failed.add(size)
                reason = str(error).partition("\n")[0]
                shown = " x ".join(map(str, images.shape))
                warnings.warn(f"batches {shown} run without CUDA graph: {reason}", stacklevel=2)
                return self.run_without(batch)
            if len(self.graphs) > self.max_sizes:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        outputs: StageOutputs = _clone(self.graphs[key](batch))
        outputs.images = batch
        return outputs

    def _discard_graphs_of_other_weights(self) -> None:
        """Compares addresses of weights and identities of modules with those of the last call.

        Reading the modules' own tables takes a fraction of the time of ``state_dict()``.
        """
        weights = [
            value.data_ptr() if isinstance(value, Tensor) else id(value)
            for table in self._tables
            for value in table.values()
        ]
        if not self._tables or weights != self._weights:
            self.graphs.clear()
            self.failed.clear()
            self._tables = [
                table
                for module in self.model.modules()
                for table in (module._parameters, module._buffers, module._modules)
            ]
            self._weights = [
                value.data_ptr() if isinstance(value, Tensor) else id(value)
                for table in self._tables
                for value in table.values()
            ]


class GraphCapture:
    """Captures with ``torch.cuda.graph``, on a side stream of the images' device.

    All graphs share one memory pool: a graph never reads what another has written.

    Args:
        cuda: ``torch.cuda``, or a stand-in for tests.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self.cuda = cuda
        self.pools: dict[torch.device, Any] = {}

    def __call__(self, run: Callable[[ImageList], StageOutputs], batch: ImageList) -> Replay:
        device = batch.tensors.device
        if device.type != "cuda":
            raise RuntimeError(f"the images are on {device}, not on a GPU")
        with torch.inference_mode(False):  # else a later call outside of it could not write here
            held = ImageList(batch.tensors.clone(), batch.sizes.clone())
        with self.cuda.device(device):
            stages, graph = self._capture(run, held, device)

        def replay(other: ImageList) -> StageOutputs:
            with self.cuda.device(device):
                held.tensors.copy_(other.tensors)
                held.sizes.copy_(other.sizes)
                graph.replay()
            return stages

        return replay

    def _capture(
        self, run: Callable[[ImageList], StageOutputs], held: ImageList, device: torch.device
    ) -> tuple[StageOutputs, Any]:
        current = self.cuda.current_stream(device)
        side = self.cuda.Stream(device)
        side.wait_stream(current)
        graph = self.cuda.CUDAGraph()
        pool = self.pools.setdefault(device, self.cuda.graph_pool_handle())
        try:
            with self.cuda.stream(side):
                for _ in range(WARM_UP_RUNS):
                    run(held)
            # "thread_local": other threads may allocate pinned memory during the capture.
            with (
                warnings.catch_warnings(),
                self.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"),
            ):
                warnings.filterwarnings("error", message="The CUDA Graph is empty")
                stages = run(held)
        except Warning as empty:
            raise RuntimeError(f"nothing was captured: {empty}") from empty
        finally:  # a capture that fails leaves its stream current
            self.cuda.set_stream(current)
        current.wait_stream(side)
        return stages, graph


def _settings(stage: nn.Module) -> list[object]:
    """What a graph of ``stage`` has fixed: its numbers by value, its functions by identity."""
    settings: list[object] = []
    for name, value in vars(stage).items():
        if name.startswith("_"):
            continue
        if isinstance(value, Mapping):
            settings += value.items()
        elif isinstance(value, (bool, int, float, str, tuple)):
            settings.append(value)
        else:
            settings.append(id(value))
    return settings


def _clone(value: Any) -> Any:
    """A copy of nested stage outputs, tensors cloned."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _clone(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _clone(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value
