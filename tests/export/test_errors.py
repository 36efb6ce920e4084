"""What can't be exported is refused with its name, and leaves no file behind."""

import builtins
import copy
import errno
import importlib
import os

import pytest
import torch
from torch import nn

from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.cli.export import export
from maskrcnn_scratch.export import ExportOptions, UnexportableError, export_onnx, export_to_file
from maskrcnn_scratch.ops import batched_nms_padded


@torch.library.custom_op("maskrcnn_scratch_tests::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


@halve.register_fake
def _(x):
    return torch.empty_like(x)


class HalvingHead(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, pooled):
        return halve(self.head(pooled))


def nms_with_a_branch(boxes, scores, *args):
    if scores.max() > 0.5:
        return batched_nms_padded(boxes, scores, *args)
    return batched_nms_padded(boxes, scores * 0.5, *args)


@pytest.mark.slow
def test_component_whose_op_has_no_translation(model, tmp_path):
    swapped = copy.deepcopy(model)
    swapped.roi_heads.box_head = HalvingHead(swapped.roi_heads.box_head)
    with pytest.raises(
        UnexportableError,
        match=r"roi_heads\.box_head \(HalvingHead\).*maskrcnn_scratch_tests::halve",
    ):
        export_onnx(swapped, tmp_path / "model.onnx", (128, 160))
    assert os.listdir(tmp_path) == []


def test_component_that_looks_at_values(model, tmp_path):
    swapped = copy.deepcopy(model)
    swapped.rpn.nms = nms_with_a_branch
    with pytest.raises(
        UnexportableError,
        match=r"rpn \(RegionProposalNetwork\).*if scores.max\(\) > 0.5.*nms_with_a_branch",
    ):
        export_to_file(swapped, tmp_path / "model.pt2", ExportOptions((128, 160)), "pt2")
    assert os.listdir(tmp_path) == []


def test_the_graph_stays_out_of_the_terminal(model, tmp_path, capfd):
    """torch.export prints the whole graph, and its message has it too."""
    swapped = copy.deepcopy(model)
    swapped.rpn.nms = nms_with_a_branch
    with pytest.raises(UnexportableError) as raised:
        export_to_file(swapped, tmp_path / "model.pt2", ExportOptions((128, 160)), "pt2")
    assert len(str(raised.value)) < 600 and "\n" not in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    captured = capfd.readouterr()
    assert len(captured.out + captured.err) < 2000
    assert len(raised.value.details) > 10_000


@pytest.mark.parametrize("step", ["convert", "load"])
def test_any_error_of_an_exporter_is_explained(model, tmp_path, monkeypatch, step):
    def fail(*args):
        try:
            raise KeyError("graph " * 1000)
        except KeyError as error:
            raise RuntimeError("failed " * 1000) from error

    from maskrcnn_scratch.export import to_file

    kind = to_file.FORMATS["pt2"]
    functions = {"convert": kind.convert, "load": kind.load, step: fail}
    monkeypatch.setitem(to_file.FORMATS, "pt2", to_file.FileFormat(".pt2", (), **functions))
    with pytest.raises(UnexportableError, match=r"exported to pt2: KeyError: 'graph") as raised:
        export_to_file(model, tmp_path / "model.pt2", ExportOptions((128, 160)), "pt2")
    assert len(str(raised.value)) < 400
    assert len(raised.value.details) > 5000
    assert os.listdir(tmp_path) == []


def test_full_disk(model, tmp_path, monkeypatch):
    from maskrcnn_scratch.export import to_file

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kind = to_file.FileFormat(".pt2", (), lambda *args: fail, fail)
    monkeypatch.setitem(to_file.FORMATS, "pt2", kind)
    monkeypatch.setattr(to_file, "export_program", lambda *args: None)
    path = tmp_path / "model.pt2"
    with pytest.raises(OSError, match=f"{path} can't be written: No space left on device"):
        export_to_file(model, path, ExportOptions((128, 160)), "pt2")
    assert os.listdir(tmp_path) == []


def test_failing_compiler(model, tmp_path, monkeypatch):
    """An OSError of the compiler is not about the file."""
    from maskrcnn_scratch.export import to_file

    def fail(*args, **kwargs):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "g++")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    monkeypatch.setattr(to_file, "export_program", lambda *args: None)
    with pytest.raises(UnexportableError, match=r"to aoti: FileNotFoundError: .*'g\+\+'"):
        export_to_file(model, tmp_path / "model.pt2", ExportOptions((128, 160)), "aoti")
    assert os.listdir(tmp_path) == []


def test_sizes_that_no_level_survives(model):
    class Unpadded(nn.Module):
        out_channels = 64

        def forward(self, x):
            x = nn.functional.avg_pool2d(x, 16)
            return {str(i): x[:, :1, i:, i:].expand(-1, 64, -1, -1) for i in range(5)}

    swapped = copy.deepcopy(model)
    swapped.backbone = Unpadded()
    options = ExportOptions((64, 96), preprocessed=True)
    with pytest.raises(ValueError, match="64 x 96 leave nothing of feature map '4'"):
        export_to_file(swapped, "unused.pt2", options, "pt2")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": (0, 20)}, "no images of 0 x 20"),
        ({"image_size": (20, 20), "batch": 0}, "batches of 0"),
        ({"image_size": (20, 20), "opset": 22}, "opset is 22; it must be in 18 to 21"),
        ({"image_size": (100, 128), "preprocessed": True}, "multiples of 32, which 100 x 128"),
        ({"image_size": (64, 96), "preprocessed": True, "dynamic": True}, "start at 96 pixels"),
    ],
)
def test_sizes_that_make_no_sense(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_to_file(model, tmp_path / "model.pt2", ExportOptions(**options), "pt2")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_compiled_package_that_would_be_wrong(model, tmp_path):
    options = ExportOptions((128, 160), dynamic=True)
    with pytest.raises(ValueError, match="export it preprocessed"):
        export_to_file(model, tmp_path / "model.pt2", options, "aoti")
    assert os.listdir(tmp_path) == []


def test_training_mode(tmp_path):
    with pytest.raises(ValueError, match="training mode"):
        export_onnx(small_maskrcnn(3, widths=(8, 8, 8, 8)), tmp_path / "model.onnx", (96, 96))


@pytest.mark.parametrize("name", ["missing/model.onnx", "file/model.onnx", "folder"])
def test_output_that_cannot_be_written(model, tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=f"{name} can't be written"):
        export_onnx(model, tmp_path / name, (128, 160))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == []


def test_onnxruntime_missing(model, tmp_path, monkeypatch):
    def import_module(name, *args):
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        return builtins.__import__(name)

    monkeypatch.setattr("maskrcnn_scratch.export.to_file.import_module", import_module)
    with pytest.raises(ImportError, match=r"needs onnxruntime: .*maskrcnn_scratch\[export\]"):
        export_onnx(model, tmp_path / "model.onnx", (128, 160))
    assert importlib.import_module("onnxruntime")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_command(model, tmp_path, monkeypatch, capsys):
    from types import SimpleNamespace

    loaded = SimpleNamespace(model=model, class_names={})
    monkeypatch.setattr("maskrcnn_scratch.cli.export.load", lambda path, model: loaded)
    # The target of a link is replaced, not the link. What a killed export left is removed.
    (tmp_path / "target").write_text("")
    (tmp_path / "model.pt2").symlink_to("target")
    (tmp_path / ".model.pt2.part").mkdir()
    (tmp_path / ".model.pt2.part/half").write_text("")
    status = export(
        tmp_path / "model.pt2", tmp_path / "weights.pt", (128, 160), "pt2", preprocessed=True
    )
    assert status == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'model.pt2.json'}" in printed
    assert (tmp_path / "model.pt2").is_symlink() and (tmp_path / "target").stat().st_size > 0
    assert sorted(os.listdir(tmp_path)) == ["model.pt2", "model.pt2.json", "target"]
