"""``maskrcnn parity``: compare every part of the model with torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from maskrcnn_scratch.files import write_json


def parity(
    device: Literal["cpu", "cuda"] = "cpu",
    image: tuple[Path, ...] = (),
    min_size: int = 800,
    json: Path | None = None,
    markdown: Path | None = None,
) -> int:
    """Compare every part of the model with torchvision, and name the first that diverges.

    Checks single ops, modules, stages, the complete model, its losses and its gradients, on
    calibrated random weights. Exit status 1 if a difference is larger than its tolerance.
    Needs torchvision and scikit-image: pip install 'maskrcnn_scratch[parity]'.

    Args:
        device: Where both models run.
        image: Images to compare on, instead of scikit-image's photographs.
        min_size: Shorter side of the images after the resize, in pixels.
        json: Write all results to this file.
        markdown: Write a summary table to this file.
    """
    from dataclasses import asdict

    import torch
    import torchvision

    from maskrcnn_scratch.data.image import read_image
    from maskrcnn_scratch.parity import report
    from maskrcnn_scratch.parity.run import parity_checks

    images = [read_image(path) for path in image] if image else None
    checks = []
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {device}")
    print(report.HEADER)
    for check in parity_checks(torch.device(device), images, min_size):
        checks.append(check)
        print(report.row(check), flush=True)
    if json is not None:
        write_json(json, [asdict(check) for check in checks], indent=1)
    if markdown is not None:
        markdown.write_text(report.markdown(checks))
    print(report.verdict(checks))
    return int(not all(check.passed for check in checks))
