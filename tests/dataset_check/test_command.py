"""``maskrcnn data check``: its findings, output and exit status."""

import json

import pytest

from maskrcnn_scratch.cli.data import check, find_annotation_files
from maskrcnn_scratch.data.image_folder import find_image_folder
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.dataset_check.model_fit import Geometry

FITTING = Geometry(min_size=128, max_size=128, anchor_sizes=(16, 32, 64, 96, 128))


@pytest.fixture
def shapes(tmp_path):
    return write_coco(ShapesDataset(3), tmp_path / "data")


def test_good_data(shapes, capsys):
    assert check((shapes,), geometry=FITTING) == 0
    shown = capsys.readouterr().out
    assert str(shapes) in shown
    assert "3 images, 0 of them without annotations" in shown
    assert "0 errors, 0 warnings" in shown
    assert "P2" in shown


def test_errors_are_shown_saved_and_exit_with_1(shapes, tmp_path, capsys):
    content = json.loads(shapes.read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[1, 2, 3, 4]]
    shapes.write_text(json.dumps(content))
    out = tmp_path / "report.json"
    assert check((shapes.parent,), geometry=FITTING, show=1, json=out) == 1
    shown = capsys.readouterr().out
    count = len(content["annotations"])
    assert f"error: bad mask ({count})" in shown
    assert "00000.png, annotation 1: a polygon is" in shown
    assert f"... and {count - 1} more (--show 0 lists all)" in shown
    (report,) = json.loads(out.read_text())
    assert len(report["problems"]) == count
    assert report["problems"][0]["annotation_id"] == 1
    check((shapes,), show=0)
    assert "--show 0" not in capsys.readouterr().out


def test_better_anchors_are_suggested(shapes, capsys):
    check((shapes,), geometry=Geometry(min_size=128, anchor_sizes=(256, 300, 400, 512, 600)))
    assert "--anchor-sizes" in capsys.readouterr().out


def test_files_that_are_not_coco_are_an_error_not_a_crash(tmp_path, capsys):
    (tmp_path / "instances.json").write_text("{")
    assert check((tmp_path / "instances.json", tmp_path / "gone.json")) == 1
    shown = capsys.readouterr().out
    assert "instances.json: not JSON" in shown
    assert "gone.json: no such file" in shown


def test_paths_without_annotation_files(tmp_path, capsys):
    assert check((tmp_path,)) == 1
    assert "of none of the formats that are read" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give at least one"):
        check(())


@pytest.mark.parametrize("folder", ["train", "annotations/train", "images", "."])
def test_image_folder_is_found(tmp_path, folder):
    file = tmp_path / "annotations" / "instances_train.json"
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(exist_ok=True)
    assert find_image_folder(file) == file.parent
    name = 'a "quoted" \u00e4.png'
    (tmp_path / folder / name).touch()
    file.write_text(json.dumps({"images": [{"file_name": name}, {"file_name": "b.png"}]}))
    assert find_image_folder(file).resolve() == (tmp_path / folder).resolve()
    file.write_text("")
    assert find_image_folder(file) == file.parent


def test_usual_layouts_are_found(data_root):
    coco, nuclei = data_root / "coco_tiny", data_root / "nuclei"
    files = find_annotation_files(coco)
    assert [file.name for file in files] == ["instances_train2017.json", "instances_val2017.json"]
    assert [find_image_folder(file) for file in files] == [coco / "train2017", coco / "val2017"]
    assert find_image_folder(nuclei / "instances_val.json") == nuclei / "val"


def test_pictures(shapes, tmp_path):
    out = tmp_path / "pictures"
    assert check((shapes,), geometry=FITTING, out=out) == 0
    assert [path.name for path in out.iterdir()] == ["labels.png"]
    other = write_coco(ShapesDataset(2, seed=1), tmp_path / "other").rename(
        tmp_path / "other" / "instances_other.json"
    )
    check((shapes, other), geometry=FITTING, out=out)
    assert {path.parent.name for path in out.glob("*/labels.png")} == {
        "instances", "instances_other",
    }  # fmt: skip
