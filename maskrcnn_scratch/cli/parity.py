"""``maskrcnn parity``: compare every part of the model with torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from maskrcnn_scratch.cli import UsageError
from maskrcnn_scratch.files import check_writable, write_json, write_text
from maskrcnn_scratch.user_code import errors_in_one_line


def parity(
    checks: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[CHECK ...]")
    ] = (),
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    replace: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=FILE.py:NAME ...")] = (),
    architecture: Literal[
        "maskrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn_v2",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
    ] = "maskrcnn_resnet50_fpn",
    weights: Path | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    image: tuple[Path, ...] = (),
    min_size: int = 800,
    json: Path | None = None,
    markdown: Path | None = None,
    html: Path | None = None,
) -> int:
    """Compare every part of the model with torchvision, and name the first that diverges.

    Checks single ops, modules, stages, the complete model, its losses and its gradients, on
    calibrated random weights; the ops in half precision, detectron2's conventions, and the
    complete model in float64. Exit status 1 if a difference is larger than its tolerance.
    Needs torchvision and scikit-image: pip install 'maskrcnn_scratch[parity]'.

    Args:
        checks: Groups of checks or single ones, such as: ops.nms stages. All by default.
        list: Print the names of all checks and do nothing.
        replace: Parts of the model to exchange for yours, as roi_heads.nms=my.py:soft_nms. Shows
            which checks change and by how much. Groups that do not use the model are skipped.
        architecture: The model.
        weights: File with trained weights of one of the four models, instead of random weights.
        device: Where both models run; half and detectron2 say where they differ.
        image: Images to compare on, instead of scikit-image's photographs.
        min_size: Shorter side of the images after the resize, in pixels; at most 300 for float64.
        json: Write all results to this file.
        markdown: Write a summary table to this file.
        html: Write a page with all results to this file.
    """
    from maskrcnn_scratch.parity.names import Selection, all_names

    if list:
        print("\n".join(all_names()))
        return 0
    selection = Selection(checks)
    for output in filter(None, (json, markdown, html)):
        check_writable(output)

    import torch
    import torchvision

    from maskrcnn_scratch.data.image import read_image
    from maskrcnn_scratch.parity import report
    from maskrcnn_scratch.parity.html import page
    from maskrcnn_scratch.parity.replacement import Replacements
    from maskrcnn_scratch.parity.run import Run, parity_checks

    run = Run(
        torch.device(device),
        [read_image(path) for path in image] or None,
        min_size,
        selection,
        architecture,
        weights,
        Replacements(replace),
    )
    found = []
    title = f"torch {torch.__version__}, torchvision {torchvision.__version__}, {device}"
    print(title)
    print(report.HEADER)
    try:
        for check in parity_checks(run):
            found.append(check)
            print(report.row(check), flush=True)
    except (TypeError, AttributeError, LookupError) as error:
        if not replace:
            raise
        with errors_in_one_line(f"--replace {' '.join(replace)}"):
            raise error
    if not found:
        raise UsageError(f"no check of {' '.join(checks)} can be made with these options")
    if json is not None:
        write_json(json, report.to_json(found), indent=1)
    if markdown is not None:
        write_text(markdown, report.markdown(found))
    if html is not None:
        write_text(html, page(found, title))
    first = report.first_failed(found)
    if first is not None:
        print("\n".join(report.divergence(first)))
    print(report.verdict(found))
    return int(first is not None)
