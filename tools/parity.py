"""Compares every part of the model with torchvision and names the first that diverges.

    python tools/parity.py [--device cpu|cuda] [--image PATH]... [--json FILE] [--markdown FILE]

Climbs from single ops over modules and stages to the whole model, its losses and gradients, on
calibrated weights (``tools/calibrate.py``). Exit status 1 if anything is beyond its tolerance.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where tools lies

from maskrcnn_scratch.data.image import read_image
from tools.calibrate import calibrated_maskrcnn
from tools.ladder.compare import Rung
from tools.ladder.ops import op_rungs
from tools.ladder.photographs import awkward_images, photographs
from tools.ladder.reference import Recording, reference_of
from tools.ladder.stages import stage_rungs
from tools.ladder.training import random_target, training_rungs
from tools.ladder.whole import Agreement, model_rung, summarize

# Seeds of the weights and the logit added to their background: from a hundred detections an image
# down to a few.
WEIGHT_SETS = ((0, 2.5), (1, 5.0), (2, 6.0))
LEVELS = ("op", "module", "stage", "model", "losses")
HEADER = f"{'':5}{'rung':44}{'absolute':>10}{'relative':>10}  tolerance"
OBJECTS = (0, 1, 64)  # in the images that the losses are compared on


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--image", action="append", type=Path, help="instead of the photographs")
    parser.add_argument("--min-size", type=int, default=800, help="shorter side after the resize")
    parser.add_argument("--json", type=Path, help="writes the table here too")
    parser.add_argument("--markdown", type=Path, help="writes a summary here, for the README")
    options = parser.parse_args(arguments)

    images = [read_image(path) for path in options.image] if options.image else None
    device = torch.device(options.device)
    rungs = []
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {device}")
    print(HEADER)
    for rung in ladder(device, images, options.min_size):
        rungs.append(rung)
        print(row(rung), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(rung) for rung in rungs], indent=1))
    if options.markdown:
        options.markdown.write_text(markdown(rungs))
    return report(rungs)


def ladder(device: torch.device, images: Sequence[Tensor] | None, min_size: int) -> Iterator[Rung]:
    """All rungs in order, from the ground up.

    Args:
        images: ``[3, H, W]`` each; by default eight photographs and some awkward sizes.
        min_size: shorter side that images are resized to.
    """
    yield from op_rungs(device)
    pictures = photographs() if images is None else list(images)
    pictures = [picture.to(device) for picture in pictures]
    whole: list[Rung] = []
    for seed, background_logit in WEIGHT_SETS:
        model = calibrated_maskrcnn(
            seed, pictures[0].cpu(), background_logit=background_logit,
            min_size=min_size, max_size=int(min_size * 1333 / 800),
        ).to(device)  # fmt: skip
        reference = reference_of(model)
        batches = [[picture] for picture in pictures]
        if images is None and seed == WEIGHT_SETS[-1][0]:
            size = (min_size * 5 // 2, min_size * 15 // 4)  # 2000 x 3000, its masks take 5 GB
            tiny, strip, grey, large = (image.to(device) for image in awkward_images(size))
            batches += [[pictures[0], tiny, strip, grey], [large]]
        agreements: list[Agreement] = []
        for index, batch in enumerate(batches):
            recording = Recording(reference, batch)
            with torch.no_grad():
                if index == 0:
                    yield from _named(stage_rungs(model, recording, batch), f"weights {seed}")
                stages = model.run_stages(batch)
            rung, agreement = model_rung(f"weights {seed}, batch {index}", stages, recording)
            agreements.append(agreement)
            if not rung.passed:
                whole.append(rung)
        whole.append(summarize(f"{len(batches)} batches, weights {seed}", agreements))
    yield from whole
    if images is None:
        targets = [random_target(pictures[n], count, n) for n, count in enumerate(OBJECTS)]
        batches = [([pictures[n]], [targets[n]]) for n in range(len(OBJECTS))]
        batches.append((pictures[: len(OBJECTS)], targets))
        yield from training_rungs(batches, pictures[0].cpu())


def _named(rungs: Iterator[Rung], suffix: str) -> Iterator[Rung]:
    for rung in rungs:
        yield Rung(**{**asdict(rung), "name": f"{rung.name}, {suffix}"})


def row(rung: Rung) -> str:
    mark = "ok" if rung.passed else "FAIL"
    text = f"{mark:5}{rung.level + ' ' + rung.name:44}{rung.absolute:10.1e}{rung.relative:10.1e}"
    return f"{text}  {rung.tolerance}" + (f" ({rung.note})" if rung.note else "")


def markdown(rungs: Sequence[Rung]) -> str:
    """The largest errors of each part over all weights and images, as a table."""
    worst: dict[tuple[str, str], list[Rung]] = {}
    for rung in rungs:
        part = re.split(
            r", (?:weights|image|batch) |,? [\d+]+ (?:boxes|objects)| N...\b", rung.name
        )[0]
        if rung.level == "model":
            part = "detections matched one to one"
        worst.setdefault((rung.level, part), []).append(rung)
    lines = ["| | compared | largest error | allowed |", "| --- | --- | --- | --- |"]
    for (level, part), same in worst.items():
        error = f"{max(rung.absolute for rung in same):.0e}"
        relative = "relative" in same[0].tolerance
        if relative:
            error = f"{max(rung.relative for rung in same):.0e} relative"
        if level == "model":
            error = "; ".join(rung.note for rung in same)
        if not any(rung.absolute for rung in same):
            error = "0"
        lines.append(f"| {level} | {part} | {error} | {same[0].tolerance} |")
    return "\n".join(lines) + "\n"


def report(rungs: Sequence[Rung]) -> int:
    """Names the first rung that diverges; the exit status."""
    failed = [rung for rung in rungs if not rung.passed]
    if not failed:
        print(f"All {len(rungs)} rungs hold.")
        return 0
    first = min(failed, key=lambda rung: LEVELS.index(rung.level))
    print(f"{len(failed)} of {len(rungs)} rungs diverge, first: {first.level} {first.name}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
