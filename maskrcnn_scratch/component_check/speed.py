"""Speed and memory of a part beside the default one. Stated, never a failure."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn_scratch.component_check.subject import flatten

CALLS = 5


@torch.no_grad()
def speed_and_memory(part: Any, default: Any, call: Callable[[Any], Any]) -> str:
    """Time, memory of all op outputs, and parameters of one call of both.

    Args:
        default: the part that the small model has otherwise.
        call: runs either on the same inputs, on the CPU.
    """
    return f"{_measure(part, call)}; default part: {_measure(default, call)}"


def _measure(part: Any, call: Callable[[Any], Any]) -> str:
    call(part)  # warm-up
    seconds = []
    for _ in range(CALLS):
        start = perf_counter()
        call(part)
        seconds.append(perf_counter() - start)
    with CountOutputs() as outputs:
        call(part)
    text = f"{median(seconds) * 1e3:.2f} ms, {outputs.bytes / 2**20:.1f} MiB of op outputs"
    if isinstance(part, nn.Module):
        text += f", {sum(p.numel() for p in part.parameters()):,} parameters"
    return text


class CountOutputs(TorchDispatchMode):
    """Adds up the memory that ops allocate for their outputs, freed or not."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in flatten([args, kwargs or {}])}
        new = {
            storage.data_ptr(): storage.nbytes()
            for storage in (tensor.untyped_storage() for tensor in flatten(outputs))
            if storage.data_ptr() not in given  # views and in-place ops allocate nothing
        }
        self.bytes += sum(new.values())
        return outputs
