"""``maskrcnn predict --annotations``: ids of images and categories come from a COCO file."""

import json
import shutil

import pytest
from PIL import Image

from maskrcnn_scratch.cli import main
from maskrcnn_scratch.data.shapes import ShapesDataset
from maskrcnn_scratch.data.to_coco import to_coco
from tests.cli.predicting import write_annotations


def test_image_and_category_ids_of_annotations(predict, pictures, tmp_path):
    annotations = write_annotations(
        tmp_path / "val.json", [(70, "rocket.jpg", {}), (7, "cat.png", {}), (8, "gone.png", {})]
    )
    extra = tmp_path / "more"
    extra.mkdir()
    shutil.copy(pictures / "cat.png", extra / "unlisted.png")
    flags = ("--annotations", annotations, "--format", "json", "coco")
    status, _, err = predict(pictures, extra, *flags)
    assert status == 0, err
    assert "1 of 3 images are not in" in predict.warnings and "unlisted.png" in predict.warnings
    assert "1 of 3 images of" in predict.warnings and "not among the images" in predict.warnings
    folder = tmp_path / "out"
    names = ("cat.json", "rocket.json")
    found = {name: json.loads((folder / name).read_text()) for name in names}
    assert [found[name]["image_id"] for name in sorted(found)] == [7, 70]
    assert found["cat.json"]["file_name"] == "cat.png"
    coco = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    assert {(entry["image_id"], entry["file_name"]) for entry in coco} == {
        (7, "cat.png"), (70, "rocket.jpg")
    }  # fmt: skip
    labels = {"dog": 5, "cat": 6}
    assert [entry["category_id"] for entry in coco if entry["image_id"] == 7] == [
        labels[detection["category"]] for detection in found["cat.json"]["detections"]
    ]


def test_annotations_alone_name_the_images(predict, pictures, tmp_path):
    folder = tmp_path / "set"
    (folder / "images" / "x").mkdir(parents=True)
    shutil.copy(pictures / "cat.png", folder / "images" / "x" / "1.png")
    annotations = write_annotations(folder / "val.json", [(3, "x\\1.png", {})])
    status, _, err = predict("--annotations", annotations, "--format", "json")
    assert status == 0, err
    found = json.loads((tmp_path / "out" / "x" / "1.json").read_text())
    assert (found["image_id"], found["file_name"]) == (3, "x\\1.png")


def test_predictions_score_as_the_model_does(predict, checkpoint, tmp_path):
    """Image ids follow the data set, so that results and annotations agree."""
    dataset = ShapesDataset(3, seed=1)
    content = to_coco(dataset)
    new_ids = dict(zip((1, 2, 3), (1040, 1002, 1031), strict=True))
    for index, entry in enumerate(content["images"]):
        pixels = (dataset[index][0].permute(1, 2, 0) * 255).round().byte().numpy()
        entry |= {"file_name": f"image{index}.png", "id": new_ids[entry["id"]]}
        Image.fromarray(pixels).save(tmp_path / entry["file_name"])
    for annotation in content["annotations"]:
        annotation["image_id"] = new_ids[annotation["image_id"]]
    for category, name in zip(content["categories"], ("dog", "cat", "bird"), strict=True):
        category["name"] = name
    annotations = tmp_path / "val.json"
    annotations.write_text(json.dumps(content))
    flags = ("--annotations", annotations, "--format", "coco")
    assert predict(tmp_path, *flags, threshold=0.0)[0] == 0
    assert "bird" in predict.warnings
    results = tmp_path / "out" / "coco_results.json"
    assert {entry["image_id"] for entry in json.loads(results.read_text())} == {*new_ids.values()}
    for name, source in (("a", ["--results", results]), ("b", ["--weights", checkpoint])):
        args = ["--annotations", annotations, *source, "--json", tmp_path / f"{name}.json"]
        assert main(["evaluate", *map(str, args)]) == 0
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert a["bbox"]["stats"] == pytest.approx(b["bbox"]["stats"])
    assert max(a["bbox"]["stats"]) > 0


def test_annotations_that_lead_out_of_their_folder(predict, tmp_path):
    annotations = write_annotations(tmp_path / "val.json", [(3, "../../secret/1.png", {})])
    status, _, err = predict("--annotations", annotations)
    assert status == 2 and "give the images as arguments" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "images, message",
    [
        ([(1, "a.png", {}), (1, "b.png", {})], "image id 1 is used twice"),
        ([(1, "a.png", {}), (2, "a.png", {})], "file_name 'a.png' is used twice"),
        ([(1, "other.png", {})], "2 of 2 images are not in"),
        ([(None, "cat.png", {})], "images[0]: id is not a whole number"),
    ],
)
def test_unfit_annotations(predict, pictures, tmp_path, images, message):
    annotations = write_annotations(tmp_path / "val.json", images)
    status, _, err = predict(pictures, "--annotations", annotations)
    assert status != 0 and message in err and err.count("\n") == 1
