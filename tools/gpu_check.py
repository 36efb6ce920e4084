"""The parts of ``tools/gpu_check.sh`` that are not programs of their own.

python tools/gpu_check.py small               every kernel once, small: for compute-sanitizer
python tools/gpu_check.py kernels --json FILE time and bytes per second of each kernel
python tools/gpu_check.py collect FOLDER      the table, and tools/results/<device>.json
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.cpp_extension import CUDA_HOME

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from maskrcnn_scratch import ops  # noqa: E402
from maskrcnn_scratch.ops import reference  # noqa: E402
from maskrcnn_scratch.ops._library import kernels  # noqa: E402

SIZES = [(200, 336), (100, 168), (50, 84), (25, 42)]  # P2-P5 of 800x1344
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
REPEATS = 30


def random_boxes(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """``[count, 4]`` on the device: sides from 16 pixels to the whole image."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([width, height])
    side = 16 * (extent / 16) ** torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (extent - side)
    return torch.cat([corner, corner + side], dim=1).cuda()


def pyramid(channels: int, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    """``[1, channels, H_l, W_l]`` for the four levels."""
    return [
        torch.randn(1, channels, *size, device="cuda").to(dtype).contiguous(memory_format=layout)
        for size in SIZES
    ]


def rois_and_levels(count: int) -> tuple[Tensor, Tensor]:
    """RoIs ``[count, 5]`` and the FPN level of each, ``[count]``."""
    boxes = random_boxes(count, 800, 1333)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    levels = (4 + (area.sqrt() / 224).log2()).floor().clamp(2, 5).long() - 2
    return torch.cat([boxes.new_zeros(count, 1), boxes], dim=1), levels


def run_small() -> None:
    """Runs every kernel on inputs that a sanitizer completes in seconds."""
    rois, levels = rois_and_levels(12)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        maps = pyramid(24, dtype, torch.channels_last)
        for ratio in (0, 2):
            for features in (maps, [map.contiguous() for map in maps]):
                scaled = rois.to(torch.float64) if dtype == torch.float64 else rois
                arguments = (features, scaled, levels, SCALES, 7, 7, ratio, False)
                kernels.multiscale_roi_align(*arguments, True)
                arguments = (*arguments, False)
                pooled = kernels.multiscale_roi_align(*arguments)
                for deterministic in (False, True):
                    kernels.multiscale_roi_align_backward(
                        pooled, scaled, levels, SCALES, *map(list, zip(*SIZES, strict=True)), 1,
                        ratio, False, True, deterministic,
                    )  # fmt: skip
        masks = torch.rand(4, 1, 28, 28, device="cuda").to(dtype)
        ops.paste_masks(masks, rois[:4, 1:], (61, 87))
        ops.paste_masks_packed(masks, rois[:4, 1:], (161, 87))
    for count, groups in ((70, 3), (9000, 2)):
        ops.nms_padded(
            random_boxes(count, 300, 300)[None], torch.rand(1, count, device="cuda"),
            torch.randint(groups, (1, count), device="cuda"), 0.5, count, groups,
        )  # fmt: skip
    for dtype in (torch.float32, torch.float64):
        ops.top_k_of_levels(torch.randn(2, 9000, device="cuda", dtype=dtype), [8000, 1000], 700)
        boxes = random_boxes(3000, 800, 1333).to(dtype)
        ops.max_iou(boxes[:70], boxes, True)
        ops.fpn_levels(boxes, 2, 5)
        coder, size = ops.boxes.BoxCoder((1.0, 1.0, 1.0, 1.0)), torch.tensor([[800, 1333]])
        rows = torch.randperm(3000, device="cuda")[None]
        ops.decode_boxes(coder, boxes[None] / 1333, rows, boxes[None], rows, size.cuda(), 1.0)
        ops.batched_nms_padded(
            boxes[None], torch.rand(1, 3000, device="cuda", dtype=dtype),
            torch.randint(5, (1, 3000), device="cuda"), 0.5, 300, 5,
        )  # fmt: skip
    torch.cuda.synchronize()


def milliseconds(function: Callable[[], Any]) -> float:
    """Median time of a call on the device; the L2 cache is overwritten before each."""
    overwritten = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    times = []
    for repeat in range(REPEATS + 3):
        overwritten.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def torchvision_pyramid(features: list[Tensor], rois: Tensor, levels: Tensor) -> list[Tensor]:
    """torchvision's RoIAlign, level by level as its pooler calls it."""
    import torchvision

    return [
        torchvision.ops.roi_align(map, rois[levels == level].to(map.dtype), 7, SCALES[level], 2)
        for level, map in enumerate(features)
    ]


def measure_kernels() -> list[dict[str, Any]]:
    """For each kernel: time, fewest bytes to move, their rate over a copy's, torchvision's time."""
    import torchvision
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    copy = 2 * source.numel() / milliseconds(lambda: source.clone()) * 1e3
    rows: list[dict[str, Any]] = [{"name": "device-to-device copy", "bytes_per_s": copy}]

    def add(
        name: str, count: int, ours: Callable[[], Any], theirs: Callable[[], Any] | None = None
    ) -> None:
        time = milliseconds(ours)
        rate = count / time * 1e3
        row: dict[str, Any] = {"name": name, "ms": time, "bytes": count, "bytes_per_s": rate}
        row["of_copy"] = rate / copy
        if theirs:
            row["torchvision_ms"] = milliseconds(theirs)
            row["ratio"] = row["torchvision_ms"] / time
        rows.append(row)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)

    rois, levels = rois_and_levels(1000)
    rest = (rois, levels, SCALES, 7, 7, 2, False)
    sizes = tuple(map(list, zip(*SIZES, strict=True)))
    for dtype in (torch.float32, torch.bfloat16):
        maps = pyramid(256, dtype, torch.channels_last)
        plain = [map.contiguous() for map in maps]
        pooled = kernels.multiscale_roi_align(maps, *rest, False)
        bytes_maps = sum(map.nbytes for map in maps)
        name = str(dtype).removeprefix("torch.")

        for layout, features in (("channels-last", maps), ("contiguous", plain)):
            add(
                f"roi_align forward {name} {layout}",
                bytes_maps + pooled.nbytes,
                partial(kernels.multiscale_roi_align, features, *rest, False),
                partial(torchvision_pyramid, plain, rois, levels),
            )
        inputs = [map.detach().clone().requires_grad_() for map in plain]
        outputs = torchvision_pyramid(inputs, rois, levels)
        grads, grad = [torch.randn_like(output) for output in outputs], torch.randn_like(pooled)
        for form in (False, True):
            arguments = (grad, rois, levels, SCALES, *sizes, 1, 2, False, True, form)
            add(
                f"roi_align backward {name} {'deterministic' if form else 'atomic'}",
                bytes_maps + grad.nbytes,
                partial(kernels.multiscale_roi_align_backward, *arguments),
                partial(torch.autograd.grad, outputs, inputs, grads, retain_graph=True),
            )

    for name, count, groups, threshold, max_out in (
        ("RPN, 5 levels", 4819, 5, 0.7, 1000),
        ("80 classes", 4819, 80, 0.5, 1000),
        ("1 group", 8000, 1, 0.5, 1000),
        ("1 group of several chunks", 20_000, 1, 0.5, 20_000),
    ):
        boxes, scores = random_boxes(count, 800, 1333), torch.rand(count, device="cuda")
        group = torch.randint(groups, (count,), device="cuda")
        padded = (boxes[None], scores[None], group[None], threshold, max_out, groups)
        add(
            f"nms {name}",
            count * 28,
            partial(ops.batched_nms_padded, *padded),
            partial(torchvision.ops.batched_nms, boxes, scores, group, threshold),
        )

    level_sizes = [3 * height * width for height, width in [*SIZES, (13, 21)]]
    logits = torch.randn(1, sum(level_sizes), device="cuda")
    anchors = random_boxes(sum(level_sizes), 800, 1333)
    for source, what in ((ops, ""), (reference, ", reference implementation")):
        add(
            f"top_k 1000 of 5 levels{what}",
            logits.nbytes,
            partial(source.top_k_of_levels, logits, level_sizes, 1000),
        )
        for count in (7, 100):
            gt_boxes = random_boxes(count, 800, 1333, seed=1)
            add(
                f"max_iou {count} objects{what}",
                anchors.nbytes + 13 * len(anchors),
                partial(source.max_iou, gt_boxes, anchors, True),
            )

    masks, boxes = torch.rand(100, 1, 28, 28, device="cuda"), random_boxes(100, 800, 1333)
    size = (800, 1333)
    add(
        "paste_masks 100 to 800x1333",
        ops.paste_masks(masks, boxes, size).nbytes,
        partial(ops.paste_masks, masks, boxes, size),
        partial(paste_masks_in_image, masks, boxes, size),
    )
    add(
        "paste_masks_packed 100 to 800x1333",
        ops.paste_masks_packed(masks, boxes, size).nbytes,
        partial(ops.paste_masks_packed, masks, boxes, size),
        lambda: paste_masks_in_image(masks, boxes, size) >= 0.5,
    )
    return rows


def collect(folder: Path) -> int:
    """Prints the table of steps and writes the results; the exit status."""
    import torchvision

    steps: list[dict[str, Any]] = []
    for line in (folder / "steps.tsv").read_text().splitlines():
        name, status, seconds = line.split("\t")
        log = folder / f"{name}.log"
        last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        steps.append(
            {"step": name, "status": status, "seconds": int(seconds), "said": "".join(last)[:160]}
        )
    nvcc = shutil.which("nvcc") or f"{CUDA_HOME}/bin/nvcc"
    compiler = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    device = torch.cuda.get_device_name()
    result: dict[str, Any] = {
        "device": device,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": sys.version.split()[0],
        "nvcc": "".join(re.findall(r"release ([\d.]+)", compiler.stdout)),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "steps": steps,
    }
    for name in ("kernels", "benchmark", "parity"):
        file = folder / f"{name}.json"
        result[name] = json.loads(file.read_text()) if file.exists() else None
    target = ROOT / "tools/results" / f"{re.sub('[^a-z0-9]+', '-', device.lower())}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")

    words = {"0": "ok", "124": "TIMED OUT"}
    for step in steps:
        status = step["status"]
        failed = words.get(status) or (status if status.startswith("skipped") else "FAILED")
        print(f"{step['step']:14}{failed:12}{step['seconds']:5} s  {step['said']}")
    for row in (result["kernels"] or [])[1:]:
        print(
            f"  {row['name']:48}{row['ms']:8.3f} ms{row['of_copy']:7.0%} of a copy"
            f"{row.get('ratio', float('nan')):8.1f} x torchvision"
        )
    print(f"{device}: wrote {target.relative_to(ROOT)}")
    return int(any(step["status"] != "0" for step in steps))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("small", "kernels", "collect"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.part == "collect":
        return collect(options.folder)
    if options.part == "small":
        run_small()
    else:
        rows = measure_kernels()
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
