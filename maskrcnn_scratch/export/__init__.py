"""Export: ONNX, ``torch.export`` and AOTInductor packages, each with a verification report.

    export_onnx(model, "mask_rcnn.onnx", (480, 640), dynamic=True)

Importing this package also teaches PyTorch's legacy ONNX exporter the model's operators.
"""

from maskrcnn_scratch.export.onnx import to_onnx
from maskrcnn_scratch.export.program import Detector, ExportOptions, export_program
from maskrcnn_scratch.export.to_file import export_onnx, export_to_file
from maskrcnn_scratch.export.unexportable import UnexportableError
from maskrcnn_scratch.export.verification import VerificationReport

__all__ = [
    "Detector",
    "ExportOptions",
    "UnexportableError",
    "VerificationReport",
    "export_onnx",
    "export_program",
    "export_to_file",
    "to_onnx",
]
