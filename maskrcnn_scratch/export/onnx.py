"""The model as ONNX, in standard operators only, with either of PyTorch's exporters.

``to_onnx`` uses the current one. Importing this module also registers the operators with the legacy
one, so that ``torch.onnx.export(model, (images,), path, opset_version=11, dynamo=False)`` works.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.export import ExportedProgram
from torch.onnx import symbolic_helper
from torch.onnx.utils import register_custom_op_symbolic

from maskrcnn_scratch import ops  # noqa: F401, registers the operators
from maskrcnn_scratch.export import translations
from maskrcnn_scratch.export.program import BilinearResize
from maskrcnn_scratch.export.translations import Operators, Value
from maskrcnn_scratch.export.unexportable import explain_conversion_errors
from maskrcnn_scratch.ops._library import NAMESPACE
from maskrcnn_scratch.transform import GeneralizedRCNNTransform

DOUBLE = 11  # onnx.TensorProtocol
LEGACY_OPSETS = range(11, 21)


def to_onnx(
    program: ExportedProgram,
    input_names: Sequence[str],
    output_names: Sequence[str] | None,
    opset: int = 18,
) -> Any:
    """A ``torch.onnx.ONNXProgram`` of operator set ``opset``.

    Raises:
        UnexportableError: an op that has no translation, and the component that it is in; or
            another error of the exporter.
    """
    with explain_conversion_errors(program), distinct_resize(program):
        return torch.onnx.export(
            program,
            opset_version=opset,
            input_names=input_names,
            output_names=output_names,
            custom_translation_table=translation_table(opset),
            dynamo=True,
            verbose=False,
        )


class CurrentOperators(Operators):
    """Nodes for the current exporter, which records the calls on an onnxscript ``Opset``."""

    def __init__(self, opset: int) -> None:
        from onnxscript.values import Opset

        self.opset_version = opset
        self.opset = Opset("", opset)

    def emit(self, name: str, inputs: Sequence[Value], attributes: dict[str, Any]) -> Any:
        return getattr(self.opset, name)(*inputs, **attributes)

    def constant(self, array: np.ndarray) -> Value:
        import onnx_ir

        return self.opset.Constant(value=onnx_ir.tensor(array))

    def is_value(self, argument: Any) -> bool:
        import onnx_ir

        return isinstance(argument, onnx_ir.Value)

    def size(self, value: Value, axis: int) -> int:
        return int(value.shape[axis])


@torch.library.custom_op(f"{NAMESPACE}_export::resize_bilinear", mutates_args=())
def resize_bilinear(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """``F.interpolate`` of ``[N, 3, H, W]`` under a name of its own."""
    return F.interpolate(images, size=list(size), mode="bilinear", align_corners=False)


@resize_bilinear.register_fake
def _(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return images.new_empty((images.shape[0], images.shape[1], size[0], size[1]))


@contextmanager
def distinct_resize(program: ExportedProgram) -> Iterator[None]:
    """Gives the resize of the transform an operator of its own while the graph is translated.

    It is translated to round as PyTorch does. Other resizes, those of swapped components, keep
    the exporter's translation: they may align corners or be given by a factor.
    """
    changed = []
    for node in program.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        in_transform = bool(stack) and str(stack[-1][1]).endswith(BilinearResize.__qualname__)
        if in_transform and node.target is torch.ops.aten.upsample_bilinear2d.vec:
            changed.append((node, node.target, node.args))
            node.target = torch.ops.maskrcnn_scratch_export.resize_bilinear.default
            node.args = node.args[:2]
    try:
        yield
    finally:
        for node, target, arguments in changed:
            node.target, node.args = target, arguments


def translation_table(opset: int) -> dict[Any, Any]:
    """ONNX for each operator, and double precision for the sizes of images.

    Sizes are Python's floats in the model, and their products are rounded down: in the float32 that
    the exporter has for them, a side would often be one pixel short.
    """
    op = CurrentOperators(opset)

    # The exporter calls by the parameters' names.
    def multiscale_roi_align(
        features: Any, rois: Any, levels: Any, scales: Any, pooled_height: Any, pooled_width: Any,
        sampling_ratio: Any, aligned: Any, channels_last: Any,
    ) -> Any:  # fmt: skip
        return translations.multiscale_roi_align(
            op, features, rois, levels, scales, pooled_height, pooled_width, sampling_ratio, aligned
        )

    def nms_padded(
        boxes: Any, scores: Any, groups: Any, iou_threshold: Any, max_out: Any, num_groups: Any,
        offset_limit: Any = 0,
    ) -> Any:  # fmt: skip
        return translations.nms_padded(
            op, boxes, scores, groups, iou_threshold, max_out, num_groups
        )

    def paste_masks(masks: Any, boxes: Any, height: Any, width: Any) -> Any:
        return translations.paste_masks(op, masks, boxes, height, width)

    def resize_bilinear(images: Any, size: Any) -> Any:
        return translations.resize_bilinear(op, images, *size)

    def to_double(size: Any) -> Any:
        return op.Cast(size, to=DOUBLE)

    def divide(one: Any, other: Any) -> Any:
        return op.Div(to_double(one), to_double(other))

    library = getattr(torch.ops, NAMESPACE)
    return {
        library.multiscale_roi_align.default: multiscale_roi_align,
        library.nms_padded.default: nms_padded,
        library.paste_masks.default: paste_masks,
        torch.ops.maskrcnn_scratch_export.resize_bilinear.default: resize_bilinear,
        torch.sym_float: to_double,
        operator.truediv: divide,
    }


class LegacyOperators(Operators):
    """Nodes for the legacy exporter, of which ``graph`` is the context of the traced graph."""

    outputs = {"TopK": 2}

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.opset_version = graph.opset

    def emit(self, name: str, inputs: Sequence[Value], attributes: dict[str, Any]) -> Any:
        if name == "ReduceSum" and self.opset_version < 13:  # axes are an attribute
            values, axes = inputs
            inputs, attributes = [values], {**attributes, "axes": self._known(axes).tolist()}
        typed = {f"{key}_{_type_suffix(value)}": value for key, value in attributes.items()}
        return self.graph.op(name, *inputs, outputs=self.outputs.get(name, 1), **typed)

    def constant(self, array: np.ndarray) -> Value:
        return self.graph.op("Constant", value_t=torch.from_numpy(array))

    def is_value(self, argument: Any) -> bool:
        return isinstance(argument, torch._C.Value)

    def size(self, value: Value, axis: int) -> int:
        size = symbolic_helper._get_tensor_dim_size(value, axis)
        assert size is not None, "a trace knows every size"
        return size

    @staticmethod
    def _known(constant: Value) -> torch.Tensor:
        return constant.node().t("value")


def _type_suffix(attribute: Any) -> str:
    first = attribute[0] if isinstance(attribute, (list, tuple)) else attribute
    return {int: "i", float: "f", str: "s"}[type(first)]


@symbolic_helper.parse_args("v", "v", "v", "fs", "i", "i", "i", "b", "b")
def _legacy_multiscale_roi_align(
    graph: Any, features: Any, rois: Any, levels: Any, scales: Any, pooled_height: Any,
    pooled_width: Any, sampling_ratio: Any, aligned: Any, channels_last: Any,
) -> Any:  # fmt: skip
    return translations.multiscale_roi_align(
        LegacyOperators(graph), symbolic_helper._unpack_list(features), rois, levels, scales,
        pooled_height, pooled_width, sampling_ratio, aligned,
    )  # fmt: skip


@symbolic_helper.parse_args("v", "v", "v", "f", "i", "i", "i")
def _legacy_nms_padded(
    graph: Any, boxes: Any, scores: Any, groups: Any, iou_threshold: Any, max_out: Any,
    num_groups: Any, offset_limit: Any,
) -> Any:  # fmt: skip
    return translations.nms_padded(
        LegacyOperators(graph), boxes, scores, groups, iou_threshold, max_out, num_groups
    )


@symbolic_helper.parse_args("v", "v", "v", "v")
def _legacy_paste_masks(graph: Any, masks: Any, boxes: Any, height: Any, width: Any) -> Any:
    return translations.paste_masks(LegacyOperators(graph), masks, boxes, height, width)


def _legacy_upsample_bilinear2d(graph: Any, images: Any, output_size: Any, *args: Any) -> Any:
    size = symbolic_helper._maybe_get_const(output_size, "is")
    innermost = graph.original_node.scopeName().rpartition("/")[2]  # "module.Class::name"
    transform = f"{GeneralizedRCNNTransform.__module__}.{GeneralizedRCNNTransform.__qualname__}::"
    if not innermost.startswith(transform):  # another resize, of a swapped component or model
        resize: Any = symbolic_helper._interpolate_helper("upsample_bilinear2d", 4, "linear")
        return resize(graph, images, output_size, *args)
    return translations.resize_bilinear(LegacyOperators(graph), images, *size)


_SYMBOLICS: dict[str, Any] = {
    f"{NAMESPACE}::multiscale_roi_align": _legacy_multiscale_roi_align,
    f"{NAMESPACE}::nms_padded": _legacy_nms_padded,
    f"{NAMESPACE}::paste_masks": _legacy_paste_masks,
    "aten::upsample_bilinear2d": _legacy_upsample_bilinear2d,
}
for _opset in LEGACY_OPSETS:
    for _name, _symbolic in _SYMBOLICS.items():
        register_custom_op_symbolic(_name, _symbolic, _opset)
