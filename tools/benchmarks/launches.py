"""Kernels per image: on a GPU counted by the profiler, on a CPU as operators called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.inference import optimize
from maskrcnn_scratch.parity.reference import reference_of

# Besides views: allocations, and numbers that become tensors on the host.
NO_KERNEL = ("empty", "empty_strided", "detach", "scalar_tensor", "_unsafe_view")


@torch.no_grad()
def count_launches(model: MaskRCNN, image: Tensor) -> dict[str, int]:
    """Of torchvision's model, ours, and ours with batch norm folded."""
    sides: dict[str, Callable[..., Any]] = {
        "torchvision": reference_of(model),
        "ours": model,
        "ours, folded": optimize(model),
    }
    count = kernels if image.device.type == "cuda" else operators
    return {name: count(partial(run, [image])) for name, run in sides.items()}


def kernels(run: Callable[[], object]) -> int:
    """Kernels and copies on the GPU, after a first run that fills caches."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profiler.events() or [])


def operators(run: Callable[[], object]) -> int:
    """Operators that compute or copy; views and allocations are not counted."""
    return count_operators(run).total()


def count_operators(run: Callable[[], object]) -> Counter[str]:
    """How often ``run`` calls each operator that computes or copies, after a first run."""
    run()
    with _Counter() as counter:
        run()
    return counter.counts


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        name = func.overloadpacket.__name__
        if not is_view and func.namespace != "prim" and name not in NO_KERNEL:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))
