"""``maskrcnn evaluate`` on a results file, and on a weights file."""

import dataclasses
import json
import warnings

import pytest
import torch

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model
from maskrcnn_scratch.cli import UsageError
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


def test_skip_bad(shapes, checkpoint, tmp_path, capsys):
    """What is left is scored as if the bad image had never been there."""
    image = tmp_path / "00001.png"
    image.write_bytes(image.read_bytes()[:-200])
    truth = json.loads(shapes.read_text())
    truth["annotations"][0]["segmentation"] = [[1, 2]]
    shapes.write_text(json.dumps(truth))
    options = {"weights": str(checkpoint), "num_workers": 0, "device": "cpu"}
    with pytest.raises(ValueError, match=r"annotation 1|00001\.png"):
        evaluate(shapes, **options)
    with pytest.warns(UserWarning, match=r"skipped 1 of 3 images and \d+ of \d+ annotations"):
        evaluate(shapes, **options, skip_bad=True, json=tmp_path / "skipped.json",
                 save_results=tmp_path / "results.json")  # fmt: skip
    bad = truth["images"][1]["id"]
    truth["images"] = [entry for entry in truth["images"] if entry["id"] != bad]
    truth["annotations"] = [a for a in truth["annotations"][1:] if a["image_id"] != bad]
    shapes.write_text(json.dumps(truth))
    evaluate(shapes, **options, json=tmp_path / "without.json")
    assert (tmp_path / "skipped.json").read_text() == (tmp_path / "without.json").read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results and bad not in {result["image_id"] for result in results}
    with pytest.raises(UsageError, match="--skip-bad needs --weights"):
        evaluate(shapes, tmp_path / "results.json", skip_bad=True)


def test_outputs_are_tried_before_the_model_runs(shapes, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("maskrcnn_scratch.cli.evaluate.load", pytest.fail)
    (tmp_path / "folder").mkdir()
    for option in ("json", "save_results"):
        with pytest.raises(OSError, match=r"folder: could not be written \(Is a directory\)"):
            evaluate(shapes, weights=str(checkpoint), **{option: tmp_path / "folder"})


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
    assert lacks.endswith("lacks 'square', which the model has")
    assert has.endswith("has 'disc' (id 1), which is 'circle' in the model")
    assert {result["category_id"] for result in json.loads(out.read_text())} == {1, 3}


def test_categories_are_matched_by_name(shapes, checkpoint, tmp_path):
    """Other ids for the same names: the same scores, and results with the file's ids."""
    options = {"weights": checkpoint, "device": "cpu", "num_workers": 0}
    evaluate(shapes, json=tmp_path / "same.json", save_results=tmp_path / "same_dt.json", **options)
    truth = json.loads(shapes.read_text())
    other = {1: 30, 2: 1, 3: 2}
    for category in truth["categories"]:
        category["id"] = other[category["id"]]
    for annotation in truth["annotations"]:
        annotation["category_id"] = other[annotation["category_id"]]
    shapes.write_text(json.dumps(truth))
    evaluate(
        shapes, json=tmp_path / "other.json", save_results=tmp_path / "other_dt.json", **options
    )
    same, renumbered = (
        json.loads((tmp_path / f"{name}_dt.json").read_text()) for name in ("same", "other")
    )
    assert len(same) > 0
    assert [other[a["category_id"]] for a in same] == [b["category_id"] for b in renumbered]
    scores = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("same", "other")]
    for kind in ("bbox", "segm"):
        # Equal up to rounding: the mean is taken over the classes in another order.
        assert scores[0][kind]["stats"] == pytest.approx(scores[1][kind]["stats"], abs=1e-12)
        assert scores[0][kind]["per_class"] == scores[1][kind]["per_class"]


def test_a_class_that_the_model_does_not_have_counts_as_missed(shapes, checkpoint, tmp_path):
    truth = json.loads(shapes.read_text())
    truth["categories"].append({"id": 9, "name": "star"})
    truth["annotations"][0]["category_id"] = 9
    shapes.write_text(json.dumps(truth))
    with pytest.warns(UserWarning, match=r"has 'star' \(id 9\), which the model does not have"):
        evaluate(shapes, weights=checkpoint, json=tmp_path / "a.json", device="cpu", num_workers=0)
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["segm"]["per_class"]["star"]["AP"] == 0


def test_results_with_empty_segmentations_score_boxes(shapes, tmp_path, capsys):
    truth = json.loads(shapes.read_text())
    results = [{**a, "score": 0.9, "segmentation": []} for a in truth["annotations"]]
    (tmp_path / "dt.json").write_text(json.dumps(results))
    evaluate(shapes, tmp_path / "dt.json", json=tmp_path / "out.json")
    assert list(written := json.loads((tmp_path / "out.json").read_text())) == ["bbox"]
    assert written["bbox"]["stats"][0] == pytest.approx(1)


def test_classes_of_one_name_are_told_apart(shapes, tmp_path, capsys):
    truth = json.loads(shapes.read_text())
    truth["categories"][2]["name"] = truth["categories"][0]["name"]
    shapes.write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text("[]")
    evaluate(shapes, tmp_path / "dt.json", per_class=True)
    shown = capsys.readouterr().out
    assert "circle (id 1)" in shown and "circle (id 3)" in shown and "square  " in shown


def test_results_of_other_files_are_a_warning(shapes, tmp_path):
    truth = json.loads(shapes.read_text())
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    results = [
        {**a, "score": 0.9, "file_name": f"folder/{names[a['image_id']]}"}
        for a in truth["annotations"]
    ]
    (tmp_path / "dt.json").write_text(json.dumps(results))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(shapes, tmp_path / "dt.json")
    for result in results:
        result["file_name"] = names[result["image_id"] % 3 + 1]
    (tmp_path / "dt.json").write_text(json.dumps(results))
    with pytest.warns(UserWarning, match=r"results of 3 images are of other files .* image id 1 i"):
        evaluate(shapes, tmp_path / "dt.json")
    results[0]["image_id"] = "00007"
    (tmp_path / "dt.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"id '00007'; '00001\.png' has id 2 there"):
        evaluate(shapes, tmp_path / "dt.json")


def test_crowds_as_objects(shapes, tmp_path):
    truth = json.loads(shapes.read_text())
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 1
    shapes.write_text(json.dumps(truth))
    results = [{**annotation, "score": 0.9} for annotation in truth["annotations"]]
    (tmp_path / "dt.json").write_text(json.dumps(results))
    found = {}
    for option in (False, True):
        out = tmp_path / "out.json"
        evaluate(shapes, tmp_path / "dt.json", crowds_as_objects=option, json=out)
        found[option] = json.loads(out.read_text())["segm"]["stats"][0]
    assert found == {False: -1, True: pytest.approx(1)}


PICTURES = {"val_predictions.jpg", "confusion_matrix.png", "pr_curve.png"}


def test_pictures_of_results_and_of_a_model(shapes, checkpoint, tmp_path, capsys):
    truth = json.loads(shapes.read_text())
    results = [{**annotation, "score": 0.9} for annotation in truth["annotations"]]
    (tmp_path / "dt.json").write_text(json.dumps(results))
    sources = {"results": {"results": tmp_path / "dt.json"},
               "weights": {"weights": checkpoint, "device": "cpu", "num_workers": 0}}  # fmt: skip
    for name, source in sources.items():
        evaluate(shapes, **source, out=tmp_path / name, json=tmp_path / "out.json")
        assert {path.name for path in (tmp_path / name).iterdir()} == PICTURES
        assert "->" not in capsys.readouterr().out
    assert "precision_recall" not in json.loads((tmp_path / "out.json").read_text())["bbox"]


def test_pictures_without_the_images(shapes, tmp_path):
    truth = json.loads(shapes.read_text())
    for image in truth["images"]:
        (shapes.parent / image["file_name"]).unlink()
    results = [{**annotation, "score": 0.9} for annotation in truth["annotations"]]
    (tmp_path / "dt.json").write_text(json.dumps(results))
    with pytest.warns(UserWarning, match=r"val_predictions\.jpg: the picture could not be drawn"):
        evaluate(shapes, tmp_path / "dt.json", out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == PICTURES - {
        "val_predictions.jpg"
    }
