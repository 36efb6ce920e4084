"""``maskrcnn export``: a model as ONNX, a torch.export program or a compiled package."""

from __future__ import annotations

from pathlib import Path

import tyro

from maskrcnn_scratch.cli.load import load
from maskrcnn_scratch.export import ExportOptions, VerificationReport, export_to_file
from maskrcnn_scratch.export.to_file import Format
from maskrcnn_scratch.export.verification import TOLERANCES
from maskrcnn_scratch.inference.predictor import to_image_tensor


def export(
    output: tyro.conf.Positional[Path],
    weights: str,
    image_size: tuple[int, int],
    model: str | None = None,
    format: Format = "onnx",
    batch: int = 1,
    dynamic: bool = False,
    raw_masks: bool = False,
    preprocessed: bool = False,
    opset: int = 18,
    images: tuple[Path, ...] = (),
) -> int:
    """Write a model to a file that runs without its Python code, and a verification report.

    The report, OUTPUT.json, compares the exported model's detections with those of the model in
    Python. Exit status 1 where they differ by more than the tolerances, or where there were none
    to compare.

    Args:
        output: File to write.
        weights: COCO_V1 (downloaded), a weights file or checkpoint, or its address:
            https://HOST/FILE#sha256=DIGITS or hf://OWNER/NAME/FILE.
        model: Your function build(config, num_classes), as for maskrcnn train: FILE.py:NAME.
        image_size: Height and width of the images; with --dynamic, of typical ones.
        format: onnx; pt2, for torch.export.load; or aoti, a package that AOTInductor has compiled,
            for C++ as well.
        batch: Number of images, all of one size.
        dynamic: Sizes and number of images may differ from call to call.
        raw_masks: Masks of 28 x 28 pixels inside their boxes, to be pasted outside the model.
        preprocessed: Take normalised, resized and padded images instead of RGB in 0-1.
        opset: ONNX operator set; 19 for models with deformable convolutions.
        images: Images that the file is verified on; by default generated ones.
    """
    trained = load(weights, model=model)
    names = trained.class_names
    report = export_to_file(
        trained.model,
        output,
        ExportOptions(image_size, batch, dynamic, preprocessed, raw_masks, opset, names),
        format,
        [to_image_tensor(path, str(path)) for path in images] or None,
    )
    print("\n".join(format_report(report)))
    print(f"{output}: {report.verdict} ({output}.json)")
    return int(report.verdict != "passed")


def format_report(report: VerificationReport) -> list[str]:
    """The errors as a table, and a hint where there were no detections to compare."""
    lines = [
        "  height  width  images  detections  unmatched" + "".join(f"{k:>10}" for k in TOLERANCES)
    ]
    for trial in report.trials:
        height, width = trial.image_size
        lines.append(
            f"{height:8}{width:7}{len(trial.num_detections):8}{sum(trial.num_detections):12}"
            f"{trial.unmatched:11}" + "".join(f"{trial.errors[k]:10.1e}" for k in TOLERANCES)
        )
    lines.append(f"{'allowed':>46}" + "".join(f"{value:10.1e}" for value in TOLERANCES.values()))
    if report.verdict == "no detections to compare":
        lines.append("The model detects nothing in these images: give other ones with --images.")
    return lines
