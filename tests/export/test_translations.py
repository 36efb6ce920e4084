"""Each operator's ONNX form against the operator, from both of PyTorch's exporters."""

import io

import numpy as np
import onnxruntime
import pytest
import torch

import maskrcnn_scratch.export  # noqa: F401, the legacy exporter's symbolics
from maskrcnn_scratch import ops
from maskrcnn_scratch.export import to_onnx
from maskrcnn_scratch.export.program import BilinearResize
from maskrcnn_scratch.parity.bilinear import UNIT_ROUNDOFF, bilinear_bound

EXPORTERS = ["current", 11, 17]  # or the operator set for the legacy one


class Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def run_as_onnx(function, inputs, exporter, others=()):
    """Outputs for ``inputs`` and each of ``others``, as arrays."""
    names = [f"input{i}" for i in range(len(inputs))]
    file = io.BytesIO()
    if exporter == "current":
        module = function if isinstance(function, torch.nn.Module) else Call(function)
        program = torch.export.export(module, tuple(inputs))
        file.write(to_onnx(program, names, None).model_proto.SerializeToString())
    else:
        torch.onnx.export(
            Call(function), tuple(inputs), file, opset_version=exporter, input_names=names,
            dynamo=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    used = {each.name for each in session.get_inputs()}
    return [
        session.run(None, {k: v.numpy() for k, v in zip(names, each, strict=True) if k in used})
        for each in (inputs, *others)
    ]


def random_boxes(*shape):
    corners = torch.rand(*shape, 2) * 100
    return torch.cat((corners, corners + torch.rand(*shape, 2) * 60), dim=-1)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_nms_padded(exporter):
    torch.manual_seed(0)

    def case(empty):
        scores = torch.rand(3, 40).mul(16).round() / 16  # many ties
        scores[0, 5:] = -torch.inf  # fewer boxes than are asked for
        scores[1, 3] = torch.nan
        if empty:
            scores[:] = -torch.inf
        return random_boxes(3, 40), scores, torch.randint(4, (3, 40))

    cases = [case(False), case(False), case(True)]
    function = lambda *x: ops.nms_padded(*x, 0.4, 12, 4)
    for inputs, (indices, count) in zip(
        cases, run_as_onnx(function, cases[0], exporter, cases[1:]), strict=True
    ):
        expected = function(*inputs)
        np.testing.assert_array_equal(count, expected[1])
        np.testing.assert_array_equal(indices, expected[0])


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("aligned", [False, True])
def test_multiscale_roi_align(exporter, aligned):
    torch.manual_seed(0)
    features = [torch.rand(2, 3, 40, 50), torch.rand(2, 3, 20, 25), torch.rand(2, 3, 10, 13)]
    rois = torch.cat((torch.randint(2, (30, 1)).float(), random_boxes(30)), dim=1)
    levels = torch.randint(2, (30,))  # nothing on the last

    def function(rois, levels, *features):
        scales = [0.25, 0.125, 0.0625]
        return ops.multiscale_roi_align(features, rois, levels, scales, (5, 4), 2, aligned)

    inputs = (rois, levels, *features)
    if aligned and exporter == 11:
        with pytest.raises(Exception, match="aligned=True needs opset_version 16"):
            run_as_onnx(function, inputs, exporter)
        return
    [[output]] = run_as_onnx(function, inputs, exporter)
    np.testing.assert_allclose(output, function(*inputs), atol=1e-6)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_paste_masks(exporter):
    torch.manual_seed(0)
    boxes = random_boxes(6) - 20
    boxes[0] = 0.0
    boxes[1] = torch.tensor([-1e30, 5.0, 1e30, 9.0])
    boxes[2] = torch.nan
    masks = torch.rand(6, 1, 7, 7)
    function = lambda masks, boxes: ops.paste_masks(masks, boxes, (70, 90))
    [[output]] = run_as_onnx(function, (masks, boxes), exporter)
    assert output.shape == (6, 1, 70, 90)
    np.testing.assert_allclose(output, function(masks, boxes), atol=1e-5)


class InTransform(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.resize = BilinearResize()
        self.size = size

    def forward(self, images):
        return self.resize(images, self.size)


class OtherResize(torch.nn.Module):
    """A resize of a swapped component."""

    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return torch.nn.functional.interpolate(x, mode="bilinear", **self.options)


OtherResize.__module__ = "maskrcnn_scratch.custom"


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    "options",
    [
        {"size": (15, 22), "align_corners": True},
        {"size": (15, 22), "align_corners": False},
        {"scale_factor": 1.5},
        {"scale_factor": (2, 0.5), "align_corners": True},
    ],
    ids=str,
)
def test_other_resizes_keep_their_options(exporter, options):
    torch.manual_seed(0)
    images = torch.rand(1, 2, 10, 12)
    function = OtherResize(options)
    [[output]] = run_as_onnx(function, (images,), exporter)
    np.testing.assert_allclose(output, function(images), atol=1e-5)


def resize_rounding_twice(images, size):
    """Bilinear resize whose positions are rounded after the product and after the difference.

    PyTorch does so or in a fused multiply-add, by instruction set (``parity/bilinear.py``). The
    blend is computed in float64.
    """
    values = images.double().numpy()
    for axis, new in ((2, size[0]), (3, size[1])):
        old = images.shape[axis]
        centres = np.arange(new, dtype=np.float32) + np.float32(0.5)
        position = np.float32(old) / np.float32(new) * centres - np.float32(0.5)
        position = np.clip(position, 0, old - 1)
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, old - 1)
        weight = (position - low).astype(np.float64)[:, None if axis == 2 else ...]
        low_values, high_values = np.take(values, low, axis), np.take(values, high, axis)
        values = low_values * (1 - weight) + high_values * weight
    return values


@pytest.mark.parametrize("size", [(224, 298), (800, 1066)])
def test_resize_rounds_as_pytorch(size):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 300, 400)
    resize = BilinearResize()
    function = lambda x: resize(x, size)
    [[output]] = run_as_onnx(InTransform(size), (images,), "current")
    # Positions are the same float32 numbers, so that only the blend rounds: six times.
    blend = 6 * UNIT_ROUNDOFF
    np.testing.assert_allclose(output, resize_rounding_twice(images, size), rtol=0, atol=blend)
    # PyTorch's own kernel may round positions otherwise; it is held to the same bound.
    exact, bound = function(images.double()), bilinear_bound(images)
    for resized in (output, function(images)):
        np.testing.assert_allclose(resized, exact, rtol=0, atol=bound)
