"""Whole models as ONNX, in onnxruntime."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from maskrcnn_scratch import __version__
from maskrcnn_scratch.export import UnexportableError, export_onnx
from maskrcnn_scratch.export.verification import SAME_DETECTION, TOLERANCES, match

ROOT = Path(__file__).parents[2]
NAMES = {1: "cat", 2: "gar\u00e7on"}


@pytest.fixture(scope="session")
def dynamic(model, photos, tmp_path_factory):
    """Path and report of an export in which everything is dynamic."""
    path = tmp_path_factory.mktemp("onnx") / "dynamic.onnx"
    return path, export_onnx(
        model, path, (200, 240), dynamic=True, images=photos, class_names=NAMES
    )


@pytest.fixture(scope="session")
def single(model, photos, tmp_path_factory):
    """Path and report of an export for one image of one size."""
    path = tmp_path_factory.mktemp("onnx") / "single.onnx"
    return path, export_onnx(model, path, (200, 240), images=photos)


def run(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}


def shapes(values):
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values
    }


def check_same(expected, exported):
    ours, theirs = match(expected, exported)
    assert len(ours) == len(expected["scores"]) == len(exported["scores"])
    for name in ("boxes", "scores"):
        error = (expected[name][ours] - exported[name][theirs]).abs()
        assert error.max() <= TOLERANCES[name] < SAME_DETECTION[name]
    # A box side within 1e-4 of a whole pixel may be cut to the next one: one mask among these.
    error = (expected["masks"][ours] - exported["masks"][theirs]).abs().amax((1, 2, 3))
    assert (error > TOLERANCES["masks"]).sum() <= 1


@pytest.mark.slow
def test_metadata(dynamic, single):
    """Class names and version, for programs without this package."""
    found = onnxruntime.InferenceSession(dynamic[0]).get_modelmeta().custom_metadata_map
    assert json.loads(found["names"]) == {str(label): name for label, name in NAMES.items()}
    assert found["version"] == __version__ and found["input"] == "RGB in 0-1"
    props = {each.key: each.value for each in onnx.load(single[0]).metadata_props}
    assert json.loads(props["names"]) == {} and json.loads(props["image_size"]) == [200, 240]


def test_one_image_of_fixed_size(model, photos, single):
    path, report = single
    assert report.verdict == "passed"
    assert report.trials[0].num_detections[0] > 3
    proto = onnx.load(path)
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert [opset.domain for opset in proto.opset_import] == [""]
    assert shapes(proto.graph.input) == {"images": [3, 200, 240]}
    outputs = shapes(proto.graph.output)
    [number] = {shape[0] for shape in outputs.values()}
    assert isinstance(number, str)
    assert outputs == {
        "boxes": [number, 4],
        "labels": [number],
        "scores": [number],
        "masks": [number, 1, 200, 240],
    }
    image = photos[1][:, :200, :240].contiguous()
    check_same(model([image])[0], run(path, images=image))


@pytest.mark.slow
def test_sizes_and_batches_are_dynamic(model, photos, dynamic):
    path, report = dynamic
    assert report.verdict == "passed"
    tried = {(trial.image_size, len(trial.num_detections)) for trial in report.trials}
    assert len(tried) == 6
    assert all(sum(trial.num_detections) > 3 for trial in report.trials)
    inputs, outputs = (
        shapes(v) for v in (onnx.load(path).graph.input, onnx.load(path).graph.output)
    )
    batch, _, height, width = inputs["images"]
    assert all(isinstance(size, str) for size in (batch, height, width))
    assert outputs == {
        "boxes": [batch, 20, 4],
        "labels": [batch, 20],
        "scores": [batch, 20],
        "masks": [batch, 20, 1, height, width],
        "num_detections": [batch],
    }
    for height, width in ((300, 280), (97, 260)):  # the second is resized to 71 x 192
        images = torch.stack([photo[:, :height, :width] for photo in photos])
        exported = run(path, images=images)
        for n, expected in enumerate(model(list(images))):
            count = exported["num_detections"][n]
            check_same(expected, {k: v[n][:count] for k, v in exported.items() if v.dim() > 1})


@pytest.mark.slow
@pytest.mark.parametrize("height, width", [(h, w) for h in (49, 98, 187) for w in (103, 211)])
def test_sizes_are_rounded_as_in_python(model, dynamic, height, width):
    # 128 / 49 * 49 is less than 128 in double precision and more in single.
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    exported = run(dynamic[0], images=images)
    count = exported["num_detections"][0]
    expected = model(list(images))[0]
    check_same(expected, {k: v[0][:count] for k, v in exported.items() if v.dim() > 1})


@pytest.mark.slow
def test_no_detections(single, dynamic):
    flat = torch.full((3, 200, 240), 0.5)
    found = run(single[0], images=flat)
    assert {name: list(value.shape) for name, value in found.items()} == {
        "boxes": [0, 4],
        "labels": [0],
        "scores": [0],
        "masks": [0, 1, 200, 240],
    }
    found = run(dynamic[0], images=flat[None].repeat(2, 1, 1, 1))
    assert not any(value.any() for value in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("raw_masks", [True, False])
def test_preprocessed(model, photos, tmp_path, raw_masks):
    report = export_onnx(
        model, tmp_path / "model.onnx", (128, 160), batch=2, preprocessed=True,
        raw_masks=raw_masks, images=photos,
    )  # fmt: skip
    assert report.verdict == "passed"
    assert min(report.trials[0].num_detections) > 3
    proto = onnx.load(tmp_path / "model.onnx")
    assert shapes(proto.graph.input) == {"images": [2, 3, 128, 160], "sizes": [2, 2]}
    mask = [28, 28] if raw_masks else [128, 160]
    assert shapes(proto.graph.output)["masks"] == [2, 20, 1, *mask]


def test_verification_report_file(single):
    content = json.loads(Path(f"{single[0]}.json").read_text())
    assert content["passed"] is True
    assert content["options"]["image_size"] == [200, 240]
    assert content["versions"].keys() >= {"torch", "onnx", "onnxruntime"}
    assert content["trials"][0]["errors"].keys() == TOLERANCES.keys()


def test_legacy_call_of_torchvisions_documentation(model, photos, tmp_path):
    x = [photos[2][:, :300, :400], photos[0][:, :500, 100:500]]
    path = tmp_path / "mask_rcnn.onnx"
    torch.onnx.export(model, (x,), path, opset_version=11, dynamo=False)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} == {""}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for images in (x, [photos[1][:, :300, :400], photos[0][:, :500, :400]], [x[0] * 0 + 0.5, x[1]]):
        arrays = [image.numpy() for image in images]
        outputs = session.run(
            None, {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)}
        )
        exported = [torch.from_numpy(output) for output in outputs]
        for n, expected in enumerate(model(images)):
            result = dict(zip(expected, exported[4 * n : 4 * n + 4], strict=True))
            if len(expected["scores"]):
                check_same(expected, result)
            assert len(result["scores"]) == len(expected["scores"])


@pytest.mark.slow
def test_example_without_pytorch(model, photos, dynamic, tmp_path):
    photo = (photos[0] * 255).byte()
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    script = ROOT / "tools" / "detect_onnx.py"
    printed = subprocess.run(
        [sys.executable, script, dynamic[0], tmp_path / "photo.png"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert printed.stderr == f"maskrcnn_scratch {__version__}, 2 classes\n"
    printed = printed.stdout.splitlines()
    expected = model([photo / 255])[0]
    assert len(printed) == len(expected["scores"])
    label = int(expected["labels"][0])
    assert printed[0].startswith(
        f"class {label} {NAMES.get(label, '')}  score {expected['scores'][0]:.3f}  box "
    )
    np.testing.assert_allclose(
        json.loads(printed[0].split("box ")[1].split("]")[0] + "]"),
        expected["boxes"][0].detach(), atol=0.1,
    )  # fmt: skip


@pytest.mark.slow
def test_deformable_convolutions_need_operator_set_19(model, photos, tmp_path):
    from torchvision.ops import DeformConv2d

    class Deformable(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.offsets = torch.nn.Conv2d(64, 18, 3, padding=1)
            self.conv = DeformConv2d(64, 64, 3, padding=1)

        def forward(self, x):
            return self.conv(x, self.offsets(x)).relu()

    swapped = copy.deepcopy(model)
    torch.manual_seed(0)
    swapped.roi_heads.mask_head = Deformable()
    path = tmp_path / "model.onnx"
    with pytest.raises(UnexportableError, match=r"No Op registered for DeformConv") as raised:
        export_onnx(swapped, path, (128, 160), images=photos)
    assert len(str(raised.value)) < 400
    # With 19 it is exported: tests/swaps/test_gallery.py::test_exports[deformable].
