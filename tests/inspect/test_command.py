"""``maskrcnn inspect``: what it writes, and what it says of bad input."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model
from maskrcnn_scratch.checkpoint import save_checkpoint
from maskrcnn_scratch.cli import FAILURE, USAGE, main
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.inspect.measure import StageError
from maskrcnn_scratch.inspect.report import ReportOptions, Sample, write_report
from maskrcnn_scratch.inspect.settings import with_settings
from maskrcnn_scratch.inspect.training_sample import training_sample


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    config = ModelConfig(architecture="small", weights="none", min_size=(96,), max_size=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config, 4)
    names = ShapesDataset.class_names
    save_checkpoint(
        {
            "model": model.state_dict(),
            "config": {"model": asdict(config)},
            "class_names": names,
            "category_labels": {label: label for label in names},
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The annotation file of four generated images, in whose folder they are."""
    return write_coco(ShapesDataset(4, seed=5), tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def inspect(checkpoint, tmp_path, capsys):
    def run(*args, out="report.html"):
        status = main(
            ["inspect", *map(str, args), "--weights", str(checkpoint), "--out", str(tmp_path / out)]
        )
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def content_of(path):
    text = path.read_text()
    return json.loads(text.split('id="content">', 1)[1].split("</script>", 1)[0])


def test_one_image_with_everything(inspect, shapes, tmp_path):
    image = shapes.parent / "00001.png"
    status, out, err = inspect(
        image, "--annotations", shapes, "--training", "--set", "roi_heads.nms_thresh=0.3"
    )
    assert (status, err) == (0, "")
    assert out.strip() == str(tmp_path / "report.html")
    content = content_of(tmp_path / "report.html")
    assert len(content["objects"]) == len(ShapesDataset(4, seed=5)[1][1]["labels"])
    assert content["training"]["losses"].keys() == {
        "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask",
    }  # fmt: skip
    assert content["compare"]["b"] == "roi_heads.nms_thresh=0.3"
    steps = {step["id"]: step for step in content["steps"]}
    source = steps["proposals"]["sources"][0]
    assert source["file"] == "maskrcnn_scratch/rpn/proposals.py"
    assert all(step["paper"] and step["look"] for step in steps.values())
    assert steps["features"]["tensors"][0]["shape"] == [1, 64, 24, 24]


def test_a_model_compared_with_itself_changes_nothing(inspect, shapes, checkpoint, tmp_path):
    status, _, _ = inspect(shapes.parent / "00001.png", "--compare", checkpoint)
    assert status == 0
    changes = content_of(tmp_path / "report.html")["compare"]["changes"]
    assert changes
    assert {change["kind"] for change in changes} == {"same"}


@pytest.mark.slow
def test_several_images(inspect, shapes, tmp_path):
    status, out, _ = inspect(shapes.parent, "--annotations", shapes)
    assert status == 0
    assert len(list((tmp_path / "report").glob("*.html"))) == 4
    assert len(content_of(tmp_path / "report.html")["entries"]) == 4
    assert "4 images" in out


def test_annotations_that_do_not_mention_the_image(inspect, shapes, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "other.png")
    status, _, err = inspect(tmp_path / "other.png", "--annotations", shapes)
    assert status == FAILURE
    assert f"instances.json does not mention {tmp_path / 'other.png'}" in err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["--training"], "--training needs --annotations"),
        (["--score-threshold", "2"], "--score-threshold is 2.0; it must be between 0 and 1"),
    ],
)
def test_usage(inspect, shapes, args, message):
    status, _, err = inspect(shapes.parent / "00001.png", *args)
    assert status == USAGE
    assert message in err


@pytest.mark.parametrize(
    "setting, message",
    [
        ("roi_heads.nms_tresh=0.3", "RoIHeads has no 'nms_tresh'; did you mean 'nms_thresh'?"),
        ("roi_heads.nms_thresh=low", "'low' is no number, tuple, True or False"),
        ("roi_heads.detections_per_img=2.5", "it is of type int (100), not float"),
        ("roi_heads=3", "...), not int"),
        ("nms_thresh", "give it as PATH=VALUE"),
    ],
)
def test_bad_settings(inspect, shapes, setting, message):
    status, _, err = inspect(shapes.parent / "00001.png", "--set", setting)
    assert status == FAILURE
    assert message in err


def test_settings_reach_dicts_and_leave_the_model_alone(small_model):
    changed = with_settings(small_model, ("rpn.pre_nms_top_n.testing=7", "roi_heads.nms_thresh=1"))
    assert changed.rpn.pre_nms_top_n["testing"] == 7
    assert changed.roi_heads.nms_thresh == 1.0
    assert small_model.rpn.pre_nms_top_n["testing"] == 1000


@pytest.mark.parametrize("out", ["report.txt", "."])
def test_out_must_be_an_html_file(inspect, shapes, out):
    status, _, err = inspect(shapes.parent / "00001.png", out=out)
    assert status == USAGE
    assert "--out" in err


def test_a_path_that_cannot_be_written(inspect, shapes, tmp_path):
    (tmp_path / "file").write_text("in the way")
    status, _, err = inspect(shapes.parent / "00001.png", out="file/report.html")
    assert status == FAILURE
    assert "report.html: could not be written" in err
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_component_that_raises_is_named_and_nothing_is_written(small_model, images, tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, pooled):
            raise ZeroDivisionError("no luck")

    model = copy.deepcopy(small_model)
    model.roi_heads.box_head = Broken()
    path = tmp_path / "report.html"
    with pytest.raises(
        StageError, match=r"roi_heads.box_head of Broken raised ZeroDivisionError: no"
    ):
        write_report(model, Sample("cat", images[0], None), path, ReportOptions({}))
    assert list(tmp_path.iterdir()) == []


def test_shares_add_up_to_the_losses(small_model, images, stages):
    """Each of the five losses is the sum of its samples' shares; another loss is not guessed."""
    height, width = images[0].shape[1:]
    masks = torch.zeros(1, height, width, dtype=torch.uint8)
    masks[:, 5:50, 5:60] = 1
    target = {
        "boxes": torch.tensor([[5.0, 5.0, 60.0, 50.0]]),
        "labels": torch.tensor([2]),
        "masks": masks,
    }
    with torch.no_grad():
        alone = small_model.run_stages(images[:1])
    sample = training_sample(small_model, images[0], target, alone)
    with torch.no_grad():
        expected = small_model.losses(images[:1], [target])
    assert sample.losses == {name: float(value) for name, value in expected.items()}
    for name, share in sample.shares.items():
        assert float(share.sum()) == pytest.approx(sample.losses[name], rel=1e-3, abs=1e-5)

    model = copy.deepcopy(small_model)
    model.rpn.loss_objectness = lambda logits, labels: logits.square().sum()
    sample = training_sample(model, images[0], target, alone)
    assert sample.shares["loss_objectness"] is None
    assert sample.shares["loss_classifier"] is not None
