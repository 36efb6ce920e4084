"""Where the CUDA kernels run: emulated on the CPU, and on a device if there is one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn_scratch.ops import _library
from tests.cuda.emulation.build import load_emulated

# (order of threads and blocks, threads per block). A kernel that lacks a barrier fails in some one.
# In the shuffled order each data race is an error too.
EMULATIONS = [("forward", 256), ("backward", 64), ("shuffled", 256)]
Kernel = Callable[..., Any]


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


def uninitialized_is_filled(op: Kernel) -> Kernel:
    """The op where ``torch.empty`` gives NaN and the largest integers."""

    @functools.wraps(op)
    def call(*arguments: Any) -> Any:
        assert torch.utils.deterministic.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        try:
            return op(*arguments)
        finally:
            torch.use_deterministic_algorithms(False)

    return call


def on_device(name: str) -> Kernel:
    """The op on the GPU, CPU tensors in and out; strides are kept."""

    def to_device(tensor: Tensor) -> Tensor:
        copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
        return copy.copy_(tensor) if 0 not in tensor.stride() else tensor.cuda()

    def call(*arguments: Any) -> Any:
        op = getattr(_library.kernels, name)
        return _map_tensors(op(*_map_tensors(arguments, to_device)), Tensor.cpu)

    return call


@pytest.fixture(
    params=[f"{order}-{threads}" for order, threads in EMULATIONS]
    + (["device"] if torch.cuda.is_available() else [])
)
def cuda(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Kernel]:
    """``cuda(name)``: the CUDA kernel of that op as a function of CPU tensors."""
    if request.param == "device":
        return on_device
    order, threads = request.param.split("-")
    sanitize = bool(os.environ.get("EMULATED_SANITIZE"))
    monkeypatch.setenv("EMULATED_ORDER", order)
    monkeypatch.setenv("EMULATED_RACES", str(int(order == "shuffled" and not sanitize)))
    ops = load_emulated(64 if sanitize else int(threads), sanitize=sanitize)
    return lambda name: uninitialized_is_filled(getattr(ops, name))
