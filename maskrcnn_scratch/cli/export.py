"""``maskrcnn export``: a model as ONNX, a torch.export program or a compiled package."""

from __future__ import annotations

from pathlib import Path

import tyro

from maskrcnn_scratch.builders.from_config import load_trained
from maskrcnn_scratch.export import Certificate, ExportOptions, export_to_file
from maskrcnn_scratch.export.to_file import Format
from maskrcnn_scratch.export.verification import TOLERANCES
from maskrcnn_scratch.inference.predictor import to_image_tensor


def export(
    output: tyro.conf.Positional[Path],
    weights: Path,
    image_size: tuple[int, int],
    format: Format = "onnx",
    batch: int = 1,
    dynamic: bool = False,
    raw_masks: bool = False,
    preprocessed: bool = False,
    images: tuple[Path, ...] = (),
) -> int:
    """Write a model to a file that runs without its Python code, and a certificate beside it.

    The certificate, OUTPUT.json, says how far the exported model's detections are from those of the
    model itself. Exit status 1 if they are farther than they may be.

    Args:
        output: File to write.
        weights: Weights or checkpoint of the model.
        image_size: Height and width of the images; with --dynamic, of typical ones.
        format: onnx; pt2, for torch.export.load; or aoti, a package that AOTInductor has compiled,
            for C++ as well.
        batch: Number of images, all of one size.
        dynamic: Sizes and number of images may differ from call to call.
        raw_masks: Masks in the frames of their boxes instead of the image's.
        preprocessed: Take normalised, resized and padded images instead of RGB in 0-1.
        images: Images that the certificate is measured on; by default generated ones.
    """
    certificate = export_to_file(
        load_trained(weights).model,
        output,
        ExportOptions(image_size, batch, dynamic, preprocessed, raw_masks),
        format,
        [to_image_tensor(path, str(path)) for path in images] or None,
    )
    print("\n".join(format_certificate(certificate)))
    print(f"{output}: {certificate.verdict} ({output}.json)")
    return int(certificate.verdict == "beyond tolerance")


def format_certificate(certificate: Certificate) -> list[str]:
    """The errors as a table, and a hint where there was nothing to find any in."""
    lines = [
        "  height  width  images  detections  unmatched" + "".join(f"{k:>10}" for k in TOLERANCES)
    ]
    for trial in certificate.trials:
        height, width = trial.image_size
        lines.append(
            f"{height:8}{width:7}{len(trial.num_detections):8}{sum(trial.num_detections):12}"
            f"{trial.unmatched:11}" + "".join(f"{trial.errors[k]:10.1e}" for k in TOLERANCES)
        )
    lines.append(f"{'allowed':>46}" + "".join(f"{value:10.1e}" for value in TOLERANCES.values()))
    if certificate.verdict == "nothing to compare":
        lines.append("The model found nothing: give images that it knows with --images.")
    return lines
