"""What ``maskrcnn predict`` writes, and where; unfit options."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as pycoco

from maskrcnn_scratch.builders.from_config import load_trained
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.cli.images import numbered_folder
from maskrcnn_scratch.inference import Predictor, optimize
from tests.cli.predicting import THRESHOLD, contents


def test_a_folder_in_every_format(predict, pictures, checkpoint, tmp_path):
    flags = ("--format", "png", "json", "--format", "rle", "coco")
    status, out, err = predict(pictures, *flags)
    assert status == 0, err
    folder = tmp_path / "out"
    each = [
        f"{name}{suffix}" for name in ("cat", "rocket") for suffix in (".json", ".png", ".rle.json")
    ]
    assert contents(folder) == sorted([*each, "coco_results.json"])

    predictor = Predictor(optimize(load_trained(checkpoint).model), score_threshold=THRESHOLD)
    results = [predictor(pictures / name) for name in ("cat.png", "rocket.jpg")]
    coco = json.loads((folder / "coco_results.json").read_text())
    assert {entry["image_id"] for entry in coco} == {1, 2}
    assert {entry["category_id"] for entry in coco} <= {10, 20}
    masks = [mask for result in results for mask in result["masks"]]
    assert len(masks) > 2
    for entry, mask in zip(coco, masks, strict=True):
        assert np.array_equal(pycoco.decode(entry["segmentation"]) != 0, mask[0].numpy() > 0.5)

    for name, result in zip(("cat", "rocket"), results, strict=True):
        found = json.loads((folder / f"{name}.json").read_text())
        assert [d["score"] for d in found["detections"]] == result["scores"].tolist()
        assert [d["box"] for d in found["detections"]] == result["boxes"].tolist()
        assert {d["category"] for d in found["detections"]} <= {"cat", "dog"}
        assert found["image_id"] == ("cat", "rocket").index(name) + 1
        assert (found["height"], found["width"]) == tuple(result["masks"].shape[-2:])
    with Image.open(folder / "rocket.png") as picture:
        assert picture.height > picture.width, "the EXIF orientation is lost"
    assert f"{pictures / 'cat.png'}: " in out and "2 of 2 images done" in out


def test_picture_and_json_by_default(predict, pictures, tmp_path):
    assert predict(pictures / "cat.png")[0] == 0
    assert contents(tmp_path / "out") == ["cat.json", "cat.png"]


def test_score_threshold_reaches_below_the_models_own(predict, pictures, tmp_path):
    counts = []
    for threshold in (0.0, 0.4, 1.0):
        args = (pictures / "cat.png", "--format", "json", "--overwrite")
        assert predict(*args, threshold=threshold)[0] == 0
        found = json.loads((tmp_path / "out" / "cat.json").read_text())["detections"]
        assert all(detection["score"] >= threshold for detection in found)
        counts.append(len(found))
    assert counts[0] == 20 and counts[2] == 0


def test_files_are_overwritten_only_with_the_option(predict, pictures, tmp_path):
    assert predict(pictures / "cat.png", "--format", "json")[0] == 0
    file = tmp_path / "out" / "cat.json"
    file.write_text("precious")
    status, _, err = predict(pictures / "cat.png", "--format", "json")
    assert status == 2 and "cat.json exists" in err and file.read_text() == "precious"
    assert predict(pictures / "cat.png", "--format", "json", "--overwrite")[0] == 0
    assert file.read_text() != "precious"


def test_the_images_themselves_are_never_overwritten(predict, pictures, tmp_path):
    (tmp_path / "out").mkdir()
    source = shutil.copy(pictures / "cat.png", tmp_path / "out" / "cat.png")
    status, _, err = predict(source, "--overwrite")
    assert status == 2 and "cat.png is one of the input images" in err


def test_images_of_the_same_name(predict, pictures, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        shutil.copy(pictures / "cat.png", tmp_path / name / "1.png")
    assert predict(tmp_path / "a", tmp_path / "b", "--format", "json")[0] == 0
    out = tmp_path / "out"
    found = {name: json.loads((out / name).read_text())["file"] for name in contents(out)}
    assert found == {"1.json": str(tmp_path / "a/1.png"), "1-2.json": str(tmp_path / "b/1.png")}


def test_batches_give_the_same_files(predict, pictures, tmp_path):
    """For images of equal size, since padding beside an image changes features at its border."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abcde":
        shutil.copy(pictures / "cat.png", folder / f"{name}.png")
    (folder / "bb.png").write_text("no picture")
    found = []
    for flags in ([], ["--batch-size", "2"]):
        _, out, err = predict(folder, "--format", "json", "--overwrite", *flags)
        assert "5 of 6 images done" in out and "bb.png" in err
        assert [out.index(f"{name}.png: ") for name in "abcde"] == sorted(
            out.index(f"{name}.png: ") for name in "abcde"
        )
        files = [json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in "abcde"]
        found += [torch.tensor([d["box"] for d in file["detections"]]) for file in files]
    assert len(found[0]) > 0
    for boxes in found[1:]:
        torch.testing.assert_close(boxes, found[0], rtol=0, atol=1e-2)


def test_unfit_options(predict, pictures, tmp_path):
    image = pictures / "cat.png"
    assert "--batch-size is 0; it must be" in predict(image, "--batch-size", "0")[2]
    assert "--score-threshold is 50.0" in predict(image, threshold=50)[2]
    status, _, err = predict(image, "--device", "gpu")
    assert status == 2 and "--device gpu cannot be used" in err and err.count("\n") == 1
    status, _, err = predict(image, weights=tmp_path / "missing.pth")
    assert status == 1 and "missing.pth: no such" in err and err.count("\n") == 1
    status, _, err = predict(image, weights=image)
    assert status == 1 and "cat.png: not a weights file" in err and err.count("\n") == 1


def test_unreachable_weights_say_which_file_to_get_and_how_to_pass_it(
    predict, pictures, tmp_path, monkeypatch
):
    from maskrcnn_scratch.weights import download

    def unplugged(*args, **kwargs):
        raise download.URLError("no network")

    monkeypatch.setattr(download, "urlopen", unplugged)
    monkeypatch.setattr(download, "_PAUSE", 0)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    status, _, err = predict(pictures / "cat.png", weights="COCO_V1")
    assert status == 1 and err.count("\n") == 1
    for part in ("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "no network", "--weights FILE"):
        assert part in err


def test_a_full_folder_ends_the_run(predict, pictures, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    status, _, err = predict(pictures)
    assert status == 1 and str(tmp_path / "out") in err


def test_each_run_has_a_folder_of_its_own(checkpoint, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = [str(pictures / "cat.png"), "--weights", str(checkpoint), "--format", "json"]
    for folder in ("predict", "predict-2", "predict-3"):
        assert main(["predict", *args]) == 0
        assert str(Path("runs", folder)) in capsys.readouterr().out
        assert contents(tmp_path / "runs" / folder) == ["cat.json"]
    assert main(["predict", *args, "--overwrite"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "predict", "predict-2", "predict-3"
    ]  # fmt: skip
    assert numbered_folder(Path("new")) == Path("new")


def test_winograd(predict, pictures, tmp_path):
    image = pictures / "cat.png"
    boxes = []
    for flags in ((), ("--winograd",)):
        status, _, err = predict(
            image, "--format", "json", "--overwrite", "--device", "cpu", *flags
        )
        assert status == 0, err
        found = json.loads((tmp_path / "out" / "cat.json").read_text())["detections"]
        boxes.append(torch.tensor([detection["box"] for detection in found]))
    torch.testing.assert_close(boxes[0], boxes[1], rtol=0, atol=1e-2)
    err = predict(image, "--winograd", "--precision", "bf16")[2]
    assert "--winograd needs --device cpu and --precision fp32" in err
