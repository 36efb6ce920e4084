"""Files that run the model without its Python code, each with a verification report beside it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

from maskrcnn_scratch import __version__
from maskrcnn_scratch.data.shapes import ShapesDataset
from maskrcnn_scratch.export.onnx import to_onnx
from maskrcnn_scratch.export.program import ExportOptions, export_program
from maskrcnn_scratch.export.unexportable import explain_conversion_errors
from maskrcnn_scratch.export.verification import Run, VerificationReport, verify
from maskrcnn_scratch.files import folder_beside, write_atomically, write_json
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN

Format = Literal["onnx", "pt2", "aoti"]


def export_onnx(
    model: GeneralizedRCNN,
    path: str | os.PathLike[str],
    image_size: tuple[int, int],
    *,
    images: Sequence[Tensor] | None = None,
    **options: Any,
) -> VerificationReport:
    """Writes the model as ONNX, of standard operators only.

    Args:
        model: in eval mode.
        path: the verification report is written to ``path.json``.
        image_size: (height, width) of the images; with ``dynamic``, of typical images.
        images: what the file is verified on, as in :func:`export_to_file`.
        **options: ``batch``, ``dynamic``, ``preprocessed``, ``raw_masks``, ``opset``,
            ``class_names``; see ``ExportOptions``, which also describes inputs and outputs.

    Returns:
        the verification report; its ``verdict`` says whether onnxruntime and PyTorch agree.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        UnexportableError: a component with an op that has no ONNX translation.
        OSError, ValueError: see :func:`export_to_file`.
    """
    return export_to_file(model, path, ExportOptions(image_size, **options), "onnx", images)


def export_to_file(
    model: GeneralizedRCNN,
    path: str | os.PathLike[str],
    options: ExportOptions,
    format: Format,
    images: Sequence[Tensor] | None = None,
) -> VerificationReport:
    """Writes the model and its verification report; neither appears before both are complete.

    Args:
        model: in eval mode.
        format: ``"onnx"``; ``"pt2"`` for ``torch.export.load``, which needs
            ``maskrcnn_scratch.ops`` imported; ``"aoti"`` for a compiled package that runs from
            C++ as well, given the library of operators.
        images: ``[3, H, W]`` in 0-1 that the file is verified on; by default generated shapes,
            in which a model trained on other data may detect nothing.

    Raises:
        OSError: the path can't be written.
        ValueError: a model in training mode, or a size that leaves a feature map empty.
        UnexportableError: a component that can't be exported, and the line that can't; or the
            compiler of a compiled package is missing or failed.
    """
    path = Path(path)
    kind = FORMATS[format]
    for package in kind.packages:
        _require(package)
    if format == "aoti" and options.dynamic and not options.preprocessed:
        # Inductor of torch 2.15 plans a convolution whose size the graph computes as contiguous
        # and runs it channels-last: the features would be wrong.
        raise ValueError(
            "a compiled package of dynamic sizes can't resize images inside: export it preprocessed"
        )
    device = next(model.parameters()).device
    if images is None:
        shapes = ShapesDataset(2, side=max(options.image_size))
        images = [shapes[n][0] for n in range(len(shapes))]
    if path.is_dir():
        raise OSError(f"{path} can't be written: it is a folder")
    with folder_beside(path) as folder:
        # The report is about the file: the model that is verified is read back from it.
        written = folder / f"model{kind.suffix}"
        program = export_program(model, options)
        with explain_conversion_errors(program, format):
            write = kind.convert(model, program, options)
        try:
            write(written)
        except OSError as error:
            raise OSError(f"{path} can't be written: {error.strerror or error}") from error
        with explain_conversion_errors(program, format):
            run = kind.load(written)
        trials = verify(model, options, run, [i.to(device) for i in images])
        report = VerificationReport(format, options, _versions(kind.packages), trials)
        with written.open("rb") as file:
            write_atomically(path, lambda out: shutil.copyfileobj(file, out))
        write_json(f"{path}.json", report.to_json())
    return report


@dataclass(frozen=True)
class FileFormat:
    """How to write an exported program to a file, and how to run that file."""

    suffix: str
    packages: tuple[str, ...]
    convert: Callable[[GeneralizedRCNN, ExportedProgram, ExportOptions], Callable[[Path], object]]
    """Returns a function that writes the result: an OSError of it is about the file."""
    load: Callable[[Path], Run]


def convert_onnx(
    model: GeneralizedRCNN, program: ExportedProgram, options: ExportOptions
) -> Callable[[Path], None]:
    outputs = ["boxes", "labels", "scores"]
    outputs += ["masks"] * model.roi_heads.has_mask() + ["num_detections"] * options.batched
    onnx_program = to_onnx(program, options.input_names, outputs, options.opset)
    onnx_program.model.metadata_props.update(metadata_of(options))
    return lambda path: onnx_program.save(path, external_data=False)


def metadata_of(options: ExportOptions) -> dict[str, str]:
    """What a file says of itself: version, class names by label (as JSON) and input.

    It is ``metadata_props`` of an ONNX file, in onnxruntime
    ``session.get_modelmeta().custom_metadata_map``, and ``metadata.json`` of a .pt2 file.
    """
    return {
        "producer": "maskrcnn_scratch",
        "version": __version__,
        "names": json.dumps(options.class_names or {}, ensure_ascii=False),
        "input": "normalised and padded" if options.preprocessed else "RGB in 0-1",
        "masks": "28 x 28 in their boxes" if options.raw_masks else "of the image's size",
        "image_size": json.dumps(None if options.dynamic else options.image_size),
    }


def load_onnx(path: Path) -> Run:
    import_module("onnx").checker.check_model(path, full_check=True)
    session = import_module("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    inputs = [each.name for each in session.get_inputs()]
    outputs = [each.name for each in session.get_outputs()]

    def run(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        arrays = [tensor.cpu().contiguous().numpy() for tensor in tensors]
        found = session.run(outputs, dict(zip(inputs, arrays, strict=True)))
        return {name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)}

    return run


def convert_pt2(
    model: GeneralizedRCNN, program: ExportedProgram, options: ExportOptions
) -> Callable[[Path], object]:
    text = json.dumps(metadata_of(options), ensure_ascii=False)
    stream = io.BytesIO()  # torch's writer of archives ends the process where the disk is full
    torch.export.save(program, stream, extra_files={"metadata.json": text})
    return lambda path: path.write_bytes(stream.getbuffer())


def load_pt2(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda tensors: module(*tensors)


def convert_aoti(
    model: GeneralizedRCNN, program: ExportedProgram, options: ExportOptions
) -> Callable[[Path], object]:
    stream = io.BytesIO()  # as in convert_pt2
    torch._inductor.aoti_compile_and_package(program, package_path=stream)
    return lambda path: path.write_bytes(stream.getbuffer())


def load_aoti(path: Path) -> Run:
    package = torch._inductor.aoti_load_package(str(path))
    return lambda tensors: package(*tensors)


FORMATS: dict[Format, FileFormat] = {
    "onnx": FileFormat(".onnx", ("onnx", "onnxscript", "onnxruntime"), convert_onnx, load_onnx),
    "pt2": FileFormat(".pt2", (), convert_pt2, load_pt2),
    "aoti": FileFormat(".pt2", (), convert_aoti, load_aoti),
}


def _require(package: str) -> None:
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"exporting to ONNX needs {package}: pip install 'maskrcnn_scratch[export]'"
        ) from error


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {"maskrcnn_scratch": __version__}
    for package in ("torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout
            found[package] = "unknown"
    return found
