"""``maskrcnn evaluate`` on a results file, and on a weights file."""

import dataclasses
import json

import pytest
import torch

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model
from maskrcnn_scratch.cli.evaluate import evaluate
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco

SMALL = ModelConfig(architecture="small", weights="none", min_size=(64,), max_size=64)


@pytest.fixture
def shapes(tmp_path):
    return write_coco(ShapesDataset(3, side=64), tmp_path)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    content = {
        "model": build_model(SMALL, 4).state_dict(),
        "config": {"model": json.loads(json.dumps(dataclasses.asdict(SMALL)))},
        "category_labels": {1: 2, 2: 1, 3: 3},
        "class_names": {1: "square", 2: "circle", 3: "triangle"},
    }
    torch.save(content, tmp_path / "last.pt")
    return tmp_path / "last.pt"


def test_fixture_results_give_its_twelve_numbers(data_root, tmp_path, capsys):
    folder = data_root / "coco_eval"
    out = tmp_path / "scores.json"
    evaluate(
        folder / "d2" / "gt_annotations.json",
        folder / "d2" / "detections.json",
        iou_type="segm",
        json=out,
    )
    expected = json.loads((folder / "expected.json").read_text())["stats"]["d2_segm"]
    assert json.loads(out.read_text())["stats"] == pytest.approx(expected, abs=1e-6)
    header, masks = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["AP", "AP50"]
    assert masks.split()[:3] == ["masks", "0.725", "1.000"]
    assert masks.split()[-1] == "-"


def test_everything_at_once(shapes, tmp_path, capsys):
    truth = json.loads(shapes.read_text())
    results = [{**annotation, "score": 0.9} for annotation in truth["annotations"]]
    results[0]["category_id"] = results[0]["category_id"] % 3 + 1
    (tmp_path / "dt.json").write_text(json.dumps(results))
    evaluate(
        shapes,
        tmp_path / "dt.json",
        per_class=True,
        tide=True,
        confusion_matrix=True,
        json=tmp_path / "out.json",
    )
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("boxes", "masks", "triangle", "Cls", "->"))
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written) == {"bbox", "segm"}
    assert len(written["bbox"]["stats"]) == 12
    assert written["segm"]["tide"]["counts"]["Cls"] == 1


def test_a_model_is_run_and_its_results_score_the_same(shapes, checkpoint, tmp_path, capsys):
    evaluate(
        shapes,
        weights=checkpoint,
        iou_type="segm",
        json=tmp_path / "direct.json",
        save_results=tmp_path / "dt.json",
        device="cpu",
        num_workers=0,
    )
    evaluate(shapes, tmp_path / "dt.json", iou_type="segm", json=tmp_path / "again.json")
    assert json.loads((tmp_path / "dt.json").read_text())
    direct, again = ((tmp_path / name).read_text() for name in ("direct.json", "again.json"))
    assert direct == again


def test_bad_arguments(shapes, tmp_path):
    with pytest.raises(ValueError, match="either --results or --weights"):
        evaluate(shapes)
    with pytest.raises(ValueError, match="either --results"):
        evaluate(shapes, tmp_path / "dt.json", weights=tmp_path / "w.pth")
    with pytest.raises(ValueError, match="--save-results"):
        evaluate(shapes, tmp_path / "dt.json", save_results=tmp_path / "out.json")
    with pytest.raises(FileNotFoundError, match=r"w\.pth"):
        evaluate(shapes, weights=tmp_path / "w.pth", images=tmp_path, device="cpu")


def test_classes_that_differ_from_the_models_are_a_warning(shapes, checkpoint, tmp_path):
    """A category missing in the data set does not count; another name is a warning."""
    truth = json.loads(shapes.read_text())
    truth["categories"] = [{"id": 1, "name": "disc"}, {"id": 3, "name": "triangle"}]
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 2]
    shapes.write_text(json.dumps(truth))
    out = tmp_path / "dt.json"
    with pytest.warns(UserWarning, match="lacks|has") as told:
        evaluate(shapes, weights=checkpoint, save_results=out, device="cpu", num_workers=0)
    lacks, has = (str(warning.message) for warning in told)
    assert lacks.endswith("lacks 'square' (id 2)")
    assert has.endswith("has 'disc' (id 1), which is 'circle' in the model")
    assert {result["category_id"] for result in json.loads(out.read_text())} == {1, 3}
