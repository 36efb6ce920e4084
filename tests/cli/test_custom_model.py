"""``--model FILE.py:NAME``: a model of the user's own function in every command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from maskrcnn_scratch import cli
from maskrcnn_scratch.builders.custom import find_builder
from maskrcnn_scratch.builders.from_config import ModelConfig, load_starting_weights, load_trained
from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.cli.train import train
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.user_code import UserCodeError
from maskrcnn_scratch.weights import WeightsError

SMALL = [
    "--architecture", "small", "--weights", "none", "--widths", "8", "16", "16", "16",
    "--min-size", "64", "--max-size", "64", "--anchor-sizes", "8", "16", "32", "48", "64",
    "--pre-nms-top-n", "50", "--post-nms-top-n", "20", "--rpn-samples", "32", "--box-samples", "16",
]  # fmt: skip
CODE = """
from pathlib import Path
import torch
from maskrcnn_scratch.builders.from_config import build_model
from maskrcnn_scratch.ops import batched_nms_padded

with open(Path(__file__).with_name("imported"), "a") as file:
    file.write("x")

def agnostic(boxes, scores, groups, threshold, max_out, num_groups):
    return batched_nms_padded(boxes, scores, torch.zeros_like(groups), threshold, max_out, 1)

class Scaled(torch.nn.Sequential):
    def __init__(self, head):
        super().__init__(head)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, pooled):
        return super().forward(pooled) * self.scale

def build(config, num_classes):
    model = build_model(config, num_classes)
    model.roi_heads.nms = agnostic
    model.roi_heads.box_head = Scaled(model.roi_heads.box_head)
    return model

def fails(config, num_classes):
    sizes = config.min_size
    return sizes["x"]

def other_classes(config, num_classes):
    return build_model(config, num_classes + 1)

def nothing(config, num_classes):
    return None

class FailsLater(Scaled):
    def forward(self, pooled):
        return pooled.no_such_name

def fails_in_training(config, num_classes):
    model = build_model(config, num_classes)
    model.roi_heads.box_head = FailsLater(model.roi_heads.box_head)
    return model

a_number = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("custom")
    (folder / "model_of_the_test.py").write_text(CODE)
    write_coco(ShapesDataset(4, seed=1, side=64), folder / "train")
    yield folder
    sys.modules.pop("model_of_the_test", None)
    sys.path.remove(str(folder))


def arguments(folder: Path, name: str, run: str) -> list[str]:
    return [
        "train", "--train-annotations", str(folder / "train" / "instances.json"), *SMALL,
        "--model", f"{folder / 'model_of_the_test.py'}:{name}", "--batch-size", "4",
        "--epochs", "3", "--num-workers", "0", "--device", "cpu", "--no-tensorboard",
        "--no-pictures", "--output", str(folder / run),
    ]  # fmt: skip


def forget(folder: Path) -> None:
    """As in a new process: the file was never imported."""
    sys.modules.pop("model_of_the_test", None)
    (folder / "imported").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A finished run of three steps."""
    assert cli.main(arguments(folder, "build", "run")) == 0
    return folder / "run"


def reference(folder: Path) -> list[str]:
    return ["--model", f"{folder / 'model_of_the_test.py'}:build"]


def test_a_checkpoint_has_the_reference_as_text(folder: Path, run: Path) -> None:
    checkpoint = load_checkpoint(run / "last.pt")
    assert checkpoint["step"] == 3
    assert checkpoint["config"]["model"]["model"] == reference(folder)[1]
    assert "roi_heads.box_head.scale" in checkpoint["model"]


def test_nothing_runs_unless_model_is_given(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(folder)
    image = str(next((folder / "train").rglob("*.png")))
    weights = ["--weights", str(run / "last.pt")]
    for command in (
        ["train", "--resume", str(run)],
        ["train", "--resume", str(run), "--epochs", "4"],
        ["train", "--config", str(run / "config.json"), "--output", str(folder / "other")],
        ["evaluate", "--annotations", str(folder / "train" / "instances.json"), *weights],
        ["predict", image, *weights],
        ["inspect", image, *weights],
        ["export", str(folder / "x.pt2"), "--image-size", "64", "64", *weights],
    ):
        assert cli.main(command) != 0
        error = capsys.readouterr().err
        assert "give --model again" in error and "model_of_the_test.py:build" in error
        assert error.count("\n") == 1
    assert cli.main(["weights", "show", str(run / "last.pt")]) == 0
    assert "model_of_the_test.py:build" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give --model again"):
        train(resume=run)
    assert not (folder / "imported").exists()
    assert not (folder / "other").exists()


def test_a_run_resumes_with_a_moved_file(folder: Path, run: Path) -> None:
    (folder / "moved").mkdir()
    moved = folder / "moved" / "model_of_the_move.py"
    moved.write_text(CODE)
    try:
        resume = ["train", "--resume", str(run), "--epochs", "4", "--model", f"{moved}:build"]
        assert cli.main(resume) == 0
    finally:
        sys.modules.pop("model_of_the_move", None)
        sys.path.remove(str(moved.parent))
    assert load_checkpoint(run / "last.pt")["step"] == 4
    assert json.loads((run / "config.json").read_text())["model"]["model"] == f"{moved}:build"


def test_evaluate_predict_and_inspect(folder: Path, run: Path) -> None:
    weights = ["--weights", str(run / "last.pt"), *reference(folder)]
    image = str(next((folder / "train").rglob("*.png")))
    annotations = str(folder / "train" / "instances.json")
    for command in (
        ["evaluate", "--annotations", annotations, *weights, "--num-workers", "0"],
        ["predict", image, *weights, "--out", str(folder / "predictions"), "--format", "json"],
        ["inspect", image, *weights, "--out", str(folder / "page.html"), "--compare",
         str(run / "last.pt")],
    ):  # fmt: skip
        assert cli.main([*command, "--device", "cpu"]) == 0
    assert list((folder / "predictions").glob("*.json"))


def test_export(folder: Path, run: Path) -> None:
    command = ["export", str(folder / "x.pt2"), "--format", "pt2", "--image-size", "64", "64"]
    assert cli.main([*command, "--weights", str(run / "last.pt"), *reference(folder)]) in (0, 1)
    assert (folder / "x.pt2").exists()


def test_a_weights_file_goes_into_the_users_model(folder: Path, run: Path, tmp_path: Path) -> None:
    build = find_builder(reference(folder)[1])
    config = ModelConfig(architecture="small", weights="none", widths=(8, 16, 16, 16))
    model = build(config, 3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    loaded = load_trained(tmp_path / "w.pth", lambda _, classes: build(config, classes))
    assert loaded.class_names == {1: "1", 2: "2"}
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "name, message",
    [
        ("fails", "model_of_the_test.py, line 29: TypeError: tuple indices must be"),
        ("fails_in_training", "model_of_the_test.py, line 39: ValueError: box_head, a model_of"),
        ("other_classes", ":other_classes: ValueError: it returns a model of 5 classes"),
        ("nothing", ":nothing: TypeError: it returns NoneType, not a MaskRCNN"),
        ("a_number", ":a_number is an object of int, not a function build(config"),
        ("buidl", "has no buidl: did you mean build?"),
    ],
)
def test_errors_are_one_line(
    folder: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(folder, name, f"run_{name}")) != 0
    error = capsys.readouterr().err
    (line,) = (each for each in error.splitlines() if "maskrcnn train: error:" in each)
    assert message in line and "Traceback" not in error


@pytest.mark.parametrize(
    "code, message",
    [
        ("x = (1,\n", "line 1: SyntaxError: '(' was never closed"),
        ("import no_such_module_at_all", "line 1: ModuleNotFoundError: No module named"),
        ("\nraise SystemExit('stop')", "line 2: SystemExit: stop"),
    ],
)
def test_errors_of_an_import_have_the_line(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "broken_file_of_the_test.py"
    file.write_text(code)
    with pytest.raises(UserCodeError) as caught:
        find_builder(f"{file}:build")
    assert f"{file}, {message}" in str(caught.value)


def test_imagenet_weights_need_a_resnet(folder: Path) -> None:
    config = ModelConfig(architecture="small", weights="none", widths=(8, 16, 16, 16))
    model = find_builder(reference(folder)[1])(config, 3)
    del model.backbone
    with pytest.raises(WeightsError, match="--weights none"):
        load_starting_weights(model, ModelConfig())
