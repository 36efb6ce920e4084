"""Times ops, stages and the model against torchvision's, on the same inputs and weights.

    python tools/benchmark.py [ops] [stages] [e2e] [options] [train] [launches]
                              [growth] [peers] [memory] [winograd] [pipeline] [int8]
                              [--device cpu|cuda] [--json FILE] [--markdown FILE] [--plot FILE]

The two sides run in turn in one process. A figure is the median of the runs; the ratio is given
with its smallest and largest value. The machine's speed at multiplying matrices and copying memory
is measured too. Without a group, the first six run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where tools lies

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
from maskrcnn_scratch.parity.photographs import photographs
from tools.benchmarks.clock import IMAGE_SIZE, Clock, Timing, describe
from tools.benchmarks.growth import plot, time_growth
from tools.benchmarks.int8 import time_int8
from tools.benchmarks.launches import count_launches
from tools.benchmarks.memory import describe_peak, measure_memory
from tools.benchmarks.model import time_model, time_options, time_training
from tools.benchmarks.ops import time_ops
from tools.benchmarks.peers import time_peers
from tools.benchmarks.pipeline import time_pipeline
from tools.benchmarks.stages import time_stages
from tools.benchmarks.winograd import time_winograd

DEFAULT_GROUPS = ("ops", "stages", "e2e", "options", "train", "launches")
GROUPS = (*DEFAULT_GROUPS, "growth", "peers", "memory", "winograd", "pipeline", "int8")
WITH_MODEL: dict[str, Callable[[Clock, MaskRCNN, Tensor], Iterator[Timing]]] = {
    "stages": time_stages,
    "e2e": time_model,
    "options": time_options,
    "peers": time_peers,
    "train": time_training,
    "winograd": time_winograd,
    "pipeline": time_pipeline,
    "int8": time_int8,
}
MEMORY_SIZES = (IMAGE_SIZE, (2000, 3000), (4000, 8000))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="group", help=", ".join(GROUPS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=10, help="for each pair, about")
    parser.add_argument("--json", type=Path, help="writes machine and timings here")
    parser.add_argument("--markdown", type=Path, help="writes the table here")
    parser.add_argument("--plot", type=Path, help="draws the growth here")
    options = parser.parse_args(arguments)
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no group is called {', '.join(unknown)}: choose from {', '.join(GROUPS)}")
    groups = options.groups or DEFAULT_GROUPS

    clock = Clock(torch.device(options.device), options.seconds)
    machine = describe(clock)
    print(json.dumps(machine, indent=1))
    timings = []
    print(f"{'':66}{'ours':>12}{'torchvision':>14}{'ratio':>9}   spread")
    for timing in measure(groups, clock):
        timings.append(timing)
        print(row(timing), flush=True)
    content: dict[str, object] = {"machine": machine, "timings": [*map(as_json, timings)]}
    lines = []
    if "launches" in groups:
        content["kernels per image"] = counts = count_launches(*model_and_image(clock.device))
        lines.append("kernels per image: " + ", ".join(f"{s} {n}" for s, n in counts.items()))
    if "memory" in groups:
        content["peak memory in MiB"] = peaks = dict(measure_memory(MEMORY_SIZES))
        for size, sides in peaks.items():
            each = (f"{side} {describe_peak(peak)}" for side, peak in sides.items())
            lines.append(f"peak memory, {size}: " + ", ".join(each))
    for line in lines:
        print(line)
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(machine, timings, lines))
    if options.plot:
        plot([timing for timing in timings if timing.group == "growth"], options.plot)


def measure(groups: Sequence[str], clock: Clock) -> Iterator[Timing]:
    if "ops" in groups:
        yield from time_ops(clock)
    if not set(groups) & {"growth", *WITH_MODEL}:
        return
    model, image = model_and_image(clock.device)
    for group, timer in WITH_MODEL.items():
        if group in groups:
            yield from timer(clock, model, image)
    if "growth" in groups:
        yield from time_growth(clock, image.cpu())


def model_and_image(device: torch.device) -> tuple[MaskRCNN, Tensor]:
    photograph = torch.nn.functional.interpolate(photographs()[2][None], IMAGE_SIZE)[0]
    return calibrated_maskrcnn(0, photograph).to(device), photograph.to(device)


def row(timing: Timing) -> str:
    low, high = timing.spread
    title = f"{timing.group} {timing.name}"
    if not has_run(timing):
        return title
    return (
        f"{title:66}{timing.ours:9.2f} ms{timing.theirs:11.2f} ms"
        f"{timing.ratio:8.2f}x   {low:.2f}-{high:.2f}"
    )


def has_run(timing: Timing) -> bool:
    """Whether there are times; a peer that could not run has NaN, and a name that says why."""
    return timing.ours == timing.ours


def as_json(timing: Timing) -> dict[str, object]:
    """Its fields; ``null`` for the times of a peer that could not run, as JSON has no NaN."""
    fields = asdict(timing)
    if not has_run(timing):
        fields.update(ours=None, theirs=None, ratio=None, spread=None)
    return fields


def markdown(
    machine: dict[str, object], timings: Sequence[Timing], others: Sequence[str] = ()
) -> str:
    """The table of the timings, the lines of ``others``, and the machine."""
    lines = [
        "| | | ours | torchvision | ratio | spread |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for timing in timings:
        low, high = timing.spread
        numbers = (
            f"{timing.ours:.1f} ms | {timing.theirs:.1f} ms | **{timing.ratio:.2f}x** | "
            f"{low:.2f}-{high:.2f}"
        )
        lines.append(
            f"| {timing.group} | {timing.name} | {numbers if has_run(timing) else '| | |'} |"
        )
    facts = "; ".join(f"{name}: {value}" for name, value in machine.items())
    table = ["\n".join(lines)] if timings else []
    return "\n\n".join([*table, *others, facts]) + "\n"


if __name__ == "__main__":
    main()
