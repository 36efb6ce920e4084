"""Timing two functions in turn, and the speed of the machine."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torchvision

IMAGE_SIZE = (800, 1200)
FLOP_PER_IMAGE = 538e9 * 1200 / 1344  # of the complete model, 1000 proposals and 100 masks


@dataclass(frozen=True)
class Timing:
    """One comparison; times are medians in milliseconds.

    Attributes:
        group, name: what was timed.
        ours, theirs: milliseconds per call.
        ratio: median of theirs / ours of each run.
        spread: smallest and largest ratio.
    """

    group: str
    name: str
    ours: float
    theirs: float
    ratio: float
    spread: tuple[float, float]


class Clock:
    """Times pairs of functions in turn.

    Args:
        seconds: about how long one pair may take in total.
        least: smallest number of runs of each pair.
    """

    def __init__(self, device: torch.device, seconds: float, least: int = 3) -> None:
        self.device, self.seconds, self.least = device, seconds, least

    def once(self, function: Callable[[], object]) -> float:
        """Milliseconds of one call, the device's work included."""
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return (time.perf_counter() - start) * 1e3

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def pair(
        self, group: str, name: str, ours: Callable[[], object], theirs: Callable[[], object]
    ) -> Timing:
        first = self.once(ours) + self.once(theirs)  # warm-up
        runs = min(max(int(self.seconds * 1e3 / max(first, 1e-3)), self.least), 50)
        times = [(self.once(ours), self.once(theirs)) for _ in range(runs)]
        ratios = sorted(theirs / ours for ours, theirs in times)
        ours_median, theirs_median = (statistics.median(side) for side in zip(*times, strict=True))
        return Timing(
            group, name, ours_median, theirs_median, statistics.median(ratios),
            (ratios[0], ratios[-1]),
        )  # fmt: skip


@torch.no_grad()
def describe(clock: Clock) -> dict[str, object]:
    """The machine, its versions, and how fast it multiplies matrices and copies memory."""
    device = clock.device
    side = 8192 if device.type == "cuda" else 2048
    speeds: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        clock.once(partial(torch.matmul, a, b))
        milliseconds = min(clock.once(partial(torch.matmul, a, b)) for _ in range(5))
        speeds[f"{str(dtype).removeprefix('torch.')} GFLOP/s"] = 2 * side**3 / milliseconds / 1e6
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device).fill_(1)
    target = torch.empty_like(source)
    target.copy_(source)
    milliseconds = min(clock.once(lambda: target.copy_(source)) for _ in range(5))
    speeds["copy GB/s (read and written)"] = 2 * source.nbytes / milliseconds / 1e6
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "tf32 in convolutions": torch.backends.cudnn.allow_tf32,
        "date": time.strftime("%Y-%m-%d"),
        **{name: round(value, 1) for name, value in speeds.items()},
        "ms of the complete model at the float32 rate": round(
            FLOP_PER_IMAGE / speeds["float32 GFLOP/s"] / 1e6, 1
        ),
    }


def processor() -> str:
    """The CPU's name and instruction set."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.processor() or platform.machine()}, {capability}"
