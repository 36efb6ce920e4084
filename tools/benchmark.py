"""Times every piece against torchvision's, on the same inputs and weights.

    python tools/benchmark.py [ops] [stages] [e2e] [compile] [train] [--device cpu|cuda]
                              [--json FILE] [--markdown FILE]

The two sides run in turn in one process, and a figure is the median of the runs with its spread;
what counts is the ratio. Beside them stands the machine's own floor: how fast it multiplies
matrices and copies memory. Without a group, all run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where tools lies

from maskrcnn_scratch import MaskRCNN, ops
from maskrcnn_scratch.rpn import RPNPredictions
from maskrcnn_scratch.rpn.head import flatten_levels
from maskrcnn_scratch.training.matcher import Matcher
from tools.calibrate import calibrated_maskrcnn
from tools.ladder.photographs import photographs
from tools.ladder.reference import Recording, reference_of
from tools.ladder.training import random_target

GROUPS = ("ops", "stages", "e2e", "compile", "train")
IMAGE_SIZE = (800, 1200)
FLOP_OF_AN_IMAGE = 538e9 * 1200 / 1344  # of the whole model, 1000 proposals and 100 masks


@dataclass(frozen=True)
class Timing:
    """One comparison; times are medians in milliseconds.

    Attributes:
        group, name: what was timed.
        ours, theirs: milliseconds a call.
        ratio: how many times faster ours is, run by run, its median.
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
        seconds: about how long one pair may take in all.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds

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
        runs = min(max(int(self.seconds * 1e3 / max(first, 1e-3)), 3), 50)
        times = [(self.once(ours), self.once(theirs)) for _ in range(runs)]
        ratios = sorted(theirs / ours for ours, theirs in times)
        ours_median, theirs_median = (statistics.median(side) for side in zip(*times, strict=True))
        return Timing(
            group, name, ours_median, theirs_median, statistics.median(ratios),
            (ratios[0], ratios[-1]),
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="group", help=", ".join(GROUPS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=10, help="for each pair, about")
    parser.add_argument("--json", type=Path, help="writes machine and timings here")
    parser.add_argument("--markdown", type=Path, help="writes the table here")
    options = parser.parse_args(arguments)
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no group is called {', '.join(unknown)}: choose from {', '.join(GROUPS)}")

    device = torch.device(options.device)
    clock = Clock(device, options.seconds)
    machine = describe(clock)
    print(json.dumps(machine, indent=1))
    timings = []
    print(f"{'':52}{'ours':>12}{'torchvision':>14}{'ratio':>9}   spread")
    for timing in measure(options.groups or GROUPS, clock):
        timings.append(timing)
        print(row(timing), flush=True)
    if options.json:
        content = {"machine": machine, "timings": [asdict(timing) for timing in timings]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(machine, timings))


def measure(groups: Sequence[str], clock: Clock) -> Iterator[Timing]:
    if "ops" in groups:
        yield from time_ops(clock)
    if set(groups) != {"ops"}:
        height, width = IMAGE_SIZE
        photograph = torch.nn.functional.interpolate(photographs()[2][None], (height, width))[0]
        model = calibrated_maskrcnn(0, photograph).to(clock.device)
        image = photograph.to(clock.device)
        if "stages" in groups:
            yield from time_stages(clock, model, image)
        if "e2e" in groups:
            yield from time_whole(clock, model, image)
        if "compile" in groups:
            yield time_compiled(clock, model, image)
        if "train" in groups:
            yield time_training(clock, model, image)


@torch.no_grad()
def time_ops(clock: Clock) -> Iterator[Timing]:
    """The hand-written ops, at the sizes that the model calls them with."""
    generator = torch.Generator().manual_seed(0)
    device = clock.device
    height, width = IMAGE_SIZE

    corner = torch.rand(1000, 2, generator=generator) * torch.tensor([width, height]) * 0.8
    side = 20 * 15 ** torch.rand(1000, 2, generator=generator)
    boxes = torch.cat((corner, corner + side), dim=1).to(device)
    rois = torch.cat((torch.zeros_like(boxes[:, :1]), boxes), dim=1)
    for layout in (torch.channels_last, torch.contiguous_format):
        yield from time_roi_align(clock, rois, layout)

    for count in (1000, 4000, 8000):
        corner = torch.rand(count, 2, generator=generator) * 700
        side = 20 + 100 * torch.rand(count, 2, generator=generator)
        many = torch.cat((corner, corner + side), dim=1).to(device)
        scores = torch.rand(count, generator=generator).to(device)
        yield clock.pair(
            "ops", f"NMS, {count} boxes",
            lambda b=many, s=scores: ops.nms(b, s, 0.7),
            lambda b=many, s=scores: torchvision.ops.nms(b, s, 0.7),
        )  # fmt: skip

    masks = torch.rand(100, 1, 28, 28, generator=generator).to(device)
    yield clock.pair(
        "ops", "paste 100 masks into 800 x 1333",
        lambda: ops.paste_masks(masks, boxes[:100], (800, 1333)),
        lambda: paste_masks_in_image(masks, boxes[:100], (800, 1333)),
    )  # fmt: skip

    anchors = torch.cat([boxes + shift for shift in range(100)])  # [100000, 4]
    objects = boxes[:50]
    reference = torchvision.models.detection._utils.Matcher(0.7, 0.3, True)
    yield clock.pair(
        "ops", "match 100,000 anchors with 50 objects",
        lambda: Matcher(0.7, 0.3, True)(objects, anchors),
        lambda: reference(torchvision.ops.box_iou(objects, anchors)),
    )  # fmt: skip


def time_roi_align(clock: Clock, rois: Tensor, layout: torch.memory_format) -> Iterator[Timing]:
    """Forward and backward on the finest level of a pyramid, ours from this layout."""
    height, width = IMAGE_SIZE
    plain = torch.randn(1, 256, height // 4, width // 4, device=clock.device)
    features = plain.contiguous(memory_format=layout)
    gradient = torch.randn(len(rois), 256, 7, 7, device=clock.device)
    name = f"1000 x 256 x 7 x 7, {'NHWC' if layout == torch.channels_last else 'NCHW'}"
    args = (rois, 7, 0.25, 2)
    yield clock.pair(
        "ops", f"RoIAlign forward, {name}",
        lambda: ops.roi_align(features, *args),
        lambda: torchvision.ops.roi_align(plain, *args),
    )  # fmt: skip
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (features, plain)]
        ours = ops.roi_align(leaves[0], *args)
        theirs = torchvision.ops.roi_align(leaves[1], *args)
    yield clock.pair(
        "ops", f"RoIAlign backward, {name}",
        lambda: torch.autograd.grad(ours, leaves[0], gradient, retain_graph=True),
        lambda: torch.autograd.grad(theirs, leaves[1], gradient, retain_graph=True),
    )  # fmt: skip


@torch.no_grad()
def time_stages(clock: Clock, model: MaskRCNN, image: Tensor) -> Iterator[Timing]:
    """Each stage on what torchvision's own stage was given."""
    reference = reference_of(model)
    recording = Recording(reference, [image])
    gave = recording.outputs
    batch, features = gave["transform"][0], gave["backbone"]
    channels_last = {
        name: feature.contiguous(memory_format=torch.channels_last)
        for name, feature in features.items()
    }
    mine, _ = model.transform([image])
    yield clock.pair(
        "stages", "transform",
        lambda: model.transform([image]), lambda: reference.transform([image]),
    )  # fmt: skip
    yield clock.pair(
        "stages", "backbone and FPN",
        lambda: model.backbone(mine.tensors), lambda: reference.backbone(batch.tensors),
    )  # fmt: skip
    maps = list(features.values())
    yield clock.pair(
        "stages", "RPN head",
        lambda: model.rpn.head(list(channels_last.values())), lambda: reference.rpn.head(maps),
    )  # fmt: skip
    objectness, deltas = gave["rpn.head"]
    anchors = gave["rpn.anchor_generator"]
    sizes = [level[0].numel() for level in objectness]
    predictions = RPNPredictions(
        anchors[0], flatten_levels(objectness, 1).squeeze(2), flatten_levels(deltas, 4), sizes
    )

    def reference_proposals() -> object:
        boxes = reference.rpn.box_coder.decode(predictions.pred_bbox_deltas.flatten(0, 1), anchors)
        return reference.rpn.filter_proposals(
            boxes.view(1, -1, 4), predictions.objectness, batch.image_sizes, sizes
        )

    yield clock.pair(
        "stages", "proposals",
        lambda: model.rpn.propose(predictions, mine.sizes), reference_proposals,
    )  # fmt: skip
    proposals = gave["rpn"][0]
    for name in ("box", "mask"):
        boxes = recording.inputs[f"roi_heads.{name}_roi_pool"][1]
        ours = getattr(model.roi_heads, f"{name}_roi_pool")
        theirs = getattr(reference.roi_heads, f"{name}_roi_pool")
        yield clock.pair(
            "stages", f"{name} RoIAlign, all levels",
            lambda o=ours, b=boxes: o(channels_last, b, [mine.padded_size]),
            lambda t=theirs, b=boxes: t(features, b, batch.image_sizes),
        )  # fmt: skip
    stages = model.run_stages([image])
    predicted = gave["roi_heads.box_predictor"]
    yield clock.pair(
        "stages", "box head to detections",
        lambda: model.roi_heads.detect_boxes(channels_last, stages.proposals, mine),
        lambda: (
            reference.roi_heads.box_predictor(
                reference.roi_heads.box_head(
                    reference.roi_heads.box_roi_pool(features, proposals, batch.image_sizes)
                )
            ),
            reference.roi_heads.postprocess_detections(*predicted, proposals, batch.image_sizes),
        ),
    )  # fmt: skip


@torch.no_grad()
def time_whole(clock: Clock, model: MaskRCNN, image: Tensor) -> Iterator[Timing]:
    """Inference from image to pasted masks."""
    reference = reference_of(model)
    yield clock.pair(
        "e2e", "one image, 100 detections", lambda: model([image]), lambda: reference([image])
    )
    thresholds = model.roi_heads.score_thresh, reference.roi_heads.score_thresh
    model.roi_heads.score_thresh = reference.roi_heads.score_thresh = 1.0
    yield clock.pair(
        "e2e", "one image, no detection", lambda: model([image]), lambda: reference([image])
    )
    model.roi_heads.score_thresh, reference.roi_heads.score_thresh = thresholds
    batch = [image, image]
    yield clock.pair("e2e", "two images", lambda: model(batch), lambda: reference(batch))


@torch.no_grad()
def time_compiled(clock: Clock, model: MaskRCNN, image: Tensor) -> Timing:
    """From padded batch to padded detections; the other side is our own eager model."""
    batch, _ = model.transform([image])
    compiled = torch.compile(model.run_batch, fullgraph=True)
    return clock.pair(
        "compile", "padded batch to detections, against our eager",
        lambda: compiled(batch), lambda: model.run_batch(batch),
    )  # fmt: skip


def time_training(clock: Clock, model: MaskRCNN, image: Tensor) -> Timing:
    """Forward and backward pass on one image with 20 objects."""
    model.train()
    reference = reference_of(model)
    target = random_target(image, 20, seed=0)

    def step(either: torch.nn.Module) -> None:
        either.zero_grad()
        torch.stack(list(either([image], [dict(target)]).values())).sum().backward()

    timing = clock.pair(
        "train", "forward and backward, 20 objects", lambda: step(model), lambda: step(reference)
    )
    model.eval()
    return timing


@torch.no_grad()
def describe(clock: Clock) -> dict[str, object]:
    """The machine, and its floors."""
    device = clock.device
    side = 8192 if device.type == "cuda" else 2048
    floors: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        clock.once(lambda a=a, b=b: a @ b)
        milliseconds = min(clock.once(lambda a=a, b=b: a @ b) for _ in range(5))
        floors[f"{str(dtype).removeprefix('torch.')} GFLOP/s"] = 2 * side**3 / milliseconds / 1e6
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device).fill_(1)
    target = torch.empty_like(source)
    target.copy_(source)
    milliseconds = min(clock.once(lambda: target.copy_(source)) for _ in range(5))
    floors["copy GB/s (read and written)"] = 2 * source.nbytes / milliseconds / 1e6
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "tf32 in convolutions": torch.backends.cudnn.allow_tf32,
        "date": time.strftime("%Y-%m-%d"),
        **{name: round(value, 1) for name, value in floors.items()},
        "ms of the whole model at the float32 rate": round(
            FLOP_OF_AN_IMAGE / floors["float32 GFLOP/s"] / 1e6, 1
        ),
    }


def processor() -> str:
    """The CPU's name and what it can do."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.processor() or platform.machine()}, {capability}"


def row(timing: Timing) -> str:
    low, high = timing.spread
    return (
        f"{timing.group + ' ' + timing.name:52}{timing.ours:9.2f} ms{timing.theirs:11.2f} ms"
        f"{timing.ratio:8.1f}x   {low:.1f}-{high:.1f}"
    )


def markdown(machine: dict[str, object], timings: Sequence[Timing]) -> str:
    lines = [
        "| | | ours | torchvision | ratio | spread |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for timing in timings:
        low, high = timing.spread
        lines.append(
            f"| {timing.group} | {timing.name} | {timing.ours:.1f} ms | {timing.theirs:.1f} ms | "
            f"**{timing.ratio:.1f}x** | {low:.1f}-{high:.1f} |"
        )
    facts = "; ".join(f"{name}: {value}" for name, value in machine.items())
    return "\n".join([*lines, "", facts]) + "\n"


if __name__ == "__main__":
    main()
