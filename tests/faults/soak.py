"""Many predictions and training steps of changing sizes; the process must not grow.

python -m tests.faults.soak --predictions 10000 --steps 1000
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.ops import paste_masks_rle
from tests.memory import return_free_memory

MOST_GROWTH = 0.05  # of the process, from the end of the first fifth to any later tenth
LARGE = (8000, 4000)
MOST_FOR_LARGE = 1.0  # GB


def memory() -> float:
    """GB that the process has now, without what its heap keeps free.

    The gaps in it: 0.1 GB after 2,400 predictions.
    """
    return_free_memory()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e9


def repeat(name: str, times: int, call: Callable[[int], object]) -> bool:
    """Whether the memory of the process stayed flat; prints it ten times."""
    found = []
    for number in range(1, times + 1):
        call(number)
        if number % max(times // 10, 1) == 0:
            found.append(memory())
            print(f"{name}: {number} of {times}, {found[-1]:.3f} GB", flush=True)
    early, most = max(found[:2]), max(found)
    flat = most <= early * (1 + MOST_GROWTH)
    print(
        f"{name}: most {most:.3f} GB, {early:.3f} in the first fifth: {'flat' if flat else 'GROWS'}"
    )
    return flat


def some_image(random: Random) -> torch.Tensor:
    return torch.rand(3, random.randint(16, 96), random.randint(16, 96))


def predictions(times: int) -> bool:
    torch.manual_seed(0)
    model = small_maskrcnn(3, widths=(8, 16, 16, 16), min_size=64, max_size=96).eval()
    random = Random(0)

    @torch.no_grad()
    def predict(_: int) -> None:
        model([some_image(random) for _ in range(random.randint(1, 2))])

    return repeat("predictions", times, predict)


def training(times: int) -> bool:
    torch.manual_seed(0)
    model = small_maskrcnn(3, widths=(8, 16, 16, 16), min_size=64, max_size=96).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    random = Random(0)

    def target(image: torch.Tensor) -> dict[str, torch.Tensor]:
        count = random.randint(0, 9)
        low = torch.rand(count, 2) * 8
        boxes = torch.cat((low, low + 1 + torch.rand(count, 2) * 7), 1)
        masks = torch.zeros(count, *image.shape[1:], dtype=torch.uint8)
        masks[:, :12, :12] = 1
        return {"boxes": boxes, "labels": torch.randint(1, 3, (count,)), "masks": masks}

    def step(_: int) -> None:
        images = [some_image(random) for _ in range(random.randint(1, 3))]
        losses = model(images, [target(image) for image in images])
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return repeat("training steps", times, step)


def large_image() -> bool:
    """300 detections of an image of 8000 x 4000, as run lengths."""
    torch.manual_seed(0)
    low = torch.rand(300, 2) * torch.tensor([3000.0, 6000.0])
    boxes = torch.cat((low, low + torch.rand(300, 2) * torch.tensor([1000.0, 2000.0])), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    masks = paste_masks_rle(torch.rand(300, 1, 28, 28), boxes, LARGE)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    print(f"300 detections of {LARGE[0]} x {LARGE[1]}: {len(masks)} masks, {growth:.3f} GB more")
    return growth < MOST_FOR_LARGE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    passed = [large_image(), training(options.steps), predictions(options.predictions)]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
