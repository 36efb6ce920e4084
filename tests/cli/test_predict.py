"""``maskrcnn predict`` on files and folders, good and bad."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as pycoco

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model, load_trained
from maskrcnn_scratch.checkpoint import save_checkpoint
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.cli.predict import find_images
from maskrcnn_scratch.inference import Predictor, optimize

THRESHOLD = 0.3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small model with random weights, as ``maskrcnn train`` saves it."""
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    config = ModelConfig(
        architecture="small", weights="none", min_size=(96,), max_size=160, detections=20
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config, 3)
    content = {
        "model": model.state_dict(),
        "config": {"model": asdict(config)},
        "class_names": {1: "cat", 2: "dog"},
        "category_labels": {10: 1, 20: 2},
    }
    save_checkpoint(content, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, photographs):
    """A folder with two photographs, one of them rotated by EXIF, and a text file."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(photographs["cat"][::2, ::2]).save(folder / "cat.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photographs["rocket"][::3, ::3]).save(folder / "rocket.jpg", exif=exif)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def predict(checkpoint, tmp_path, capsys):
    """Runs the command into ``tmp_path / "out"``; returns exit status, stdout and stderr."""

    def run(*args, weights=checkpoint, threshold=THRESHOLD):
        args = [*map(str, args), "--weights", str(weights), "--out", str(tmp_path / "out")]
        status = main(["predict", *args, "--score-threshold", str(threshold)])
        return (status, *capsys.readouterr())

    return run


def contents(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


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


def test_bad_images_are_reported_and_the_others_processed(predict, pictures, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(pictures / "cat.png", folder / "a.png")
    data = (pictures / "cat.png").read_bytes()
    (folder / "b.png").write_bytes(data[: len(data) // 2])
    (folder / "c.jpg").write_text("text")
    shutil.copy(pictures / "cat.png", folder / "d.png")
    status, out, err = predict(folder, "--format", "json")
    assert status == 1 and "2 of 4 images done" in out
    errors = err.strip().splitlines()
    assert len(errors) == 2 and "b.png" in errors[0] and "c.jpg" in errors[1]
    assert contents(tmp_path / "out") == ["a.json", "d.json"]


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


def test_finding_images(pictures, tmp_path, monkeypatch):
    cat, rocket = pictures / "cat.png", pictures / "rocket.jpg"
    assert find_images([str(pictures)]) == [cat, rocket]
    assert find_images([str(pictures / "*.jpg"), str(pictures)]) == [rocket, cat]
    assert find_images([str(pictures.parent / "**" / pictures.name / "*")]) == [cat, rocket]
    brackets = tmp_path / "a[1].png"
    shutil.copy(cat, brackets)
    assert find_images([str(brackets)]) == [brackets]
    monkeypatch.chdir(pictures)
    assert [str(file) for file in find_images(["cat.png", "./cat.png", str(cat)])] == ["cat.png"]


@pytest.mark.parametrize(
    "images, message",
    [
        ([], "give at least one image"),
        (["missing.jpg"], "missing.jpg: no such image file"),
        (["cat.png", "*.gif"], "*.gif: no such image file"),
        (["empty"], "empty: no images in the folder"),
    ],
)
def test_unfit_arguments(predict, pictures, tmp_path, monkeypatch, images, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.copy(pictures / "cat.png", "cat.png")
    status, _, err = predict(*images)
    assert status == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


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


def test_images_that_do_not_fit_into_memory_are_named(predict, pictures, monkeypatch):
    def postprocess(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(
        "maskrcnn_scratch.transform.GeneralizedRCNNTransform.postprocess", postprocess
    )
    status, out, err = predict(pictures)
    assert status == 1 and "0 of 2 images done" in out
    assert "cat.png: out of memory in pasting the masks" in err and err.count("\n") == 2


def test_an_image_whose_results_do_not_fit_into_memory_is_named(predict, pictures, monkeypatch):
    from maskrcnn_scratch.inference import writers

    draw = writers.draw_detections

    def draw_small(image, *args):
        if image.shape[-1] == cat_width:
            raise MemoryError
        return draw(image, *args)

    with Image.open(pictures / "cat.png") as cat:
        cat_width = cat.width
    monkeypatch.setattr(writers, "draw_detections", draw_small)
    status, out, err = predict(pictures)
    assert status == 1 and "1 of 2 images done" in out
    assert "cat.png: out of memory in writing the results" in err and err.count("\n") == 1


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
