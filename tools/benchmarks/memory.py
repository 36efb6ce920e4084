"""Peak memory of inference, each side in its own process.

    python tools/benchmarks/memory.py SIDE HEIGHT WIDTH

prints the mebibytes that one inference adds at its peak (Linux).
"""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

SIDES = ("torchvision", "ours", "ours, masks as RLE")


def measure_memory(
    sizes: tuple[tuple[int, int], ...],
) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Image size and peak of each side in MiB; None where memory was not enough."""
    for height, width in sizes:
        peaks: dict[str, float | None] = {}
        for side in SIDES:
            command = [sys.executable, __file__, side, str(height), str(width)]
            run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
            peaks[side] = float(run.stdout.split()[-1]) if run.returncode == 0 else None
        yield f"{height} x {width}", peaks


@torch.no_grad()
def main(side: str, height: int, width: int) -> None:
    from maskrcnn_scratch.evaluation.model_results import detect_rle
    from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
    from maskrcnn_scratch.parity.photographs import photographs
    from maskrcnn_scratch.parity.reference import reference_of

    available = 2**20 * mebibytes("/proc/meminfo", "MemAvailable")
    resource.setrlimit(resource.RLIMIT_AS, (int(available),) * 2)
    photograph = photographs()[2]
    model = calibrated_maskrcnn(0, photograph)
    image = torch.nn.functional.interpolate(photograph[None], (height, width))[0]
    reference = reference_of(model) if side == "torchvision" else None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = mebibytes("/proc/self/status", "VmRSS")
    if reference is not None:
        found = reference([image])[0]["masks"]
    elif side == "ours":
        found = model([image])[0]["masks"]
    else:
        found = detect_rle(model, [image])[0]["masks"]
    assert len(found) == model.roi_heads.detections_per_img
    print(f"{mebibytes('/proc/self/status', 'VmHWM') - before:.0f}")


def mebibytes(file: str, field: str) -> float:
    """A field of one of the system's files."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
