"""Peak memory of inference, each side in its own process.

    python tools/benchmarks/memory.py --image-size 800 1200 --batch-size 1 --detections 100

prints the mebibytes that one inference adds at its peak (Linux), for this package and, if it is
installed, for torchvision.
"""

from __future__ import annotations

import argparse
import ctypes
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

SIDES = ("torchvision", "ours", "ours, masks as RLE")
OUT_OF_MEMORY = ("MemoryError", "not enough memory", "bad_alloc", "Cannot allocate memory")


def measure_memory(
    sizes: Sequence[tuple[int, int]], batch_size: int = 1, detections: int = 100
) -> Iterator[tuple[str, dict[str, float | str]]]:
    """Image size and peak of each side in MiB, or why there is none, such as too little memory.

    Args:
        sizes: (height, width) of the images.
        batch_size: images of the batch.
        detections: per image.
    """
    sides = SIDES if find_spec("torchvision") else SIDES[1:]
    for height, width in sizes:
        peaks: dict[str, float | str] = {}
        for side in sides:
            numbers = map(str, (height, width, batch_size, detections))
            command = [sys.executable, __file__, "--side", side, "--numbers", *numbers]
            run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
            peaks[side] = float(run.stdout.split()[-1]) if run.returncode == 0 else why_failed(run)
        yield f"{height} x {width}", peaks


def why_failed(run: subprocess.CompletedProcess[str]) -> str:
    """One line: "not enough memory", or the last line of what the process wrote."""
    if run.returncode == -signal.SIGKILL or any(text in run.stderr for text in OUT_OF_MEMORY):
        return "not enough memory"
    return (run.stderr.strip() or f"exit status {run.returncode}").splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image-size", type=int, nargs=2, default=(800, 1200), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--detections", type=int, default=100, help="per image, at most 500")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # of the processes that are measured
    parser.add_argument("--numbers", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure_side(options.side, *options.numbers)
        return
    if min(*options.image_size, options.batch_size) < 1 or not 1 <= options.detections <= 500:
        parser.error("sizes must be positive, and --detections 1 to 500")
    size = tuple(options.image_size)
    for _, peaks in measure_memory([size], options.batch_size, options.detections):
        for side in SIDES:
            print(f"{side}: {describe_peak(peaks[side]) if side in peaks else 'is not installed'}")


def describe_peak(peak: float | str) -> str:
    """With its unit, if it is a number."""
    return peak if isinstance(peak, str) else f"{peak:.0f} MiB"


@torch.no_grad()
def measure_side(side: str, height: int, width: int, batch_size: int, detections: int) -> None:
    """Prints the peak of one side in MiB."""
    from maskrcnn_scratch.evaluation.model_results import detect_rle
    from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
    from maskrcnn_scratch.parity.photographs import photographs

    # The limit is one of addresses, of which libraries reserve more than they use.
    limit = mebibytes("/proc/self/status", "VmSize") + mebibytes("/proc/meminfo", "MemAvailable")
    resource.setrlimit(resource.RLIMIT_AS, (int(limit * 2**20),) * 2)
    photograph = photographs()[2]
    model = calibrated_maskrcnn(0, photograph, box_detections_per_img=detections)
    images = [torch.nn.functional.interpolate(photograph[None], (height, width))[0]] * batch_size
    reference = None
    if side == "torchvision":
        from maskrcnn_scratch.parity.reference import reference_of

        reference = reference_of(model)
        reference.roi_heads.detections_per_img = detections
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = mebibytes("/proc/self/status", "VmRSS")
    if reference is not None:
        found = reference(images)
    elif side == "ours":
        found = model(images)
    else:
        found = detect_rle(model, images)
    assert all(len(result["masks"]) == detections for result in found)
    print(f"{mebibytes('/proc/self/status', 'VmHWM') - before:.0f}")


def mebibytes(file: str, field: str) -> float:
    """A field of one of the system's files."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    main()
