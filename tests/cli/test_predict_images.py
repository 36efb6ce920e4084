"""Which files ``maskrcnn predict`` finds, how it reads them, and what it says of bad ones."""

import json
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskrcnn_scratch.cli.images import find_files, find_images
from tests.cli.predicting import contents, write_annotations


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
    from maskrcnn_scratch.inference import visualize

    draw = visualize.draw_detections

    def draw_small(image, *args, **options):
        if image.shape[-1] == cat_width:
            raise MemoryError
        return draw(image, *args, **options)

    with Image.open(pictures / "cat.png") as cat:
        cat_width = cat.width
    monkeypatch.setattr(visualize, "draw_detections", draw_small)
    status, out, err = predict(pictures)
    assert status == 1 and "1 of 2 images done" in out
    assert "cat.png: out of memory in writing the results" in err and err.count("\n") == 1


def test_folders_are_searched_recursively_but_not_the_results(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = (
        "a.png", "sub/a.png", "sub/deep/b.PNG", ".hidden/c.png", "runs/predict/a.png",
        "runs/predict-2/a.png", "runs/2/a.png", "runs/other/a.png",
    )  # fmt: skip
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "cat.png", place)
    expected = ["a.png", "runs/2/a.png", "runs/other/a.png", "sub/a.png", "sub/deep/b.PNG"]
    found = find_files(["."], [".png"], Path("runs/predict"))
    assert list(found.values()) == expected
    assert [file.as_posix() for file in found] == expected
    assert list(find_files(["sub"], [".png"]).values()) == ["a.png", "deep/b.PNG"]
    assert list(find_files(["s*/**/*.png"], [".png"]).values()) == ["sub/a.png"]


def test_exif_is_named_and_can_be_ignored(predict, pictures, tmp_path):
    with Image.open(pictures / "rocket.jpg") as picture:
        width, height = picture.size
    assert predict(pictures, "--format", "json")[0] == 0
    assert "rocket.jpg: turned by its EXIF" in predict.warnings
    assert predict.warnings.count("\n") == 1
    assert predict(pictures, "--format", "json", "--no-exif", "--overwrite")[0] == 0
    assert not predict.warnings
    found = json.loads((tmp_path / "out" / "rocket.json").read_text())
    assert (found["height"], found["width"]) == (height, width)

    sizes = {"height": height, "width": width}
    annotations = write_annotations(tmp_path / "val.json", [(1, "rocket.jpg", sizes)])
    flags = (pictures / "rocket.jpg", "--annotations", annotations, "--format", "json")
    status, _, err = predict(*flags, "--overwrite")
    assert status == 1 and "fits with --no-exif" in err and err.count("\n") == 1
    assert predict(*flags, "--overwrite", "--no-exif")[0] == 0


def test_max_pixels(predict, pictures, tmp_path):
    with Image.open(pictures / "cat.png") as picture:
        pixels = picture.width * picture.height
    flags = (pictures / "cat.png", "--format", "json", "--max-pixels")
    status, _, err = predict(*flags, pixels - 1)
    assert status == 1 and "cat.png: too many pixels" in err and err.count("\n") == 1
    assert predict(*flags, pixels)[0] == 0 and not predict.warnings


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_pages(predict, pictures, tmp_path, suffix):
    with Image.open(pictures / "cat.png") as picture:
        frames = [picture.convert("RGB"), picture.convert("L").convert("RGB").rotate(180)]
    file = tmp_path / f"scan.{suffix}"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    assert predict(file, "--format", "json")[0] == 0
    assert "only the first of its 2 pages" in predict.warnings and "--all-pages" in predict.warnings
    assert contents(tmp_path / "out") == ["scan.json"]
    status, out, _ = predict(file, "--format", "json", "coco", "--all-pages")
    assert status == 0 and not predict.warnings and "2 of 2 images done" in out
    first, second = (
        json.loads((tmp_path / "out" / f"scan-page{page}.json").read_text()) for page in (1, 2)
    )
    assert [first["page"], second["page"]] == [1, 2] == [first["image_id"], second["image_id"]]
    assert first["detections"] != second["detections"]
    assert "--all-pages or --annotations" in predict(file, "--all-pages", "--annotations", file)[2]


def test_videos(predict, pictures, checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("av")
    from maskrcnn_scratch.inference.video import VideoReader, VideoWriter

    source = tmp_path / "in" / "sub" / "clip.MP4"
    source.parent.mkdir(parents=True)
    shutil.copy(pictures / "cat.png", tmp_path / "in" / "cat.png")
    with Image.open(pictures / "cat.png") as picture, open(source, "wb") as file:
        picture = picture.convert("RGB").resize((96, 64))
        writer = VideoWriter(file, (64, 96), Fraction(10), Fraction(1, 10))
        for index in range(3):
            writer.write(picture, index)
        writer.close()
    status, out, err = predict(tmp_path / "in", "--format", "png", "json", "--format", "rle")
    assert status == 0, err
    assert "1 of 1 images done" in out and "1 of 1 videos done" in out and "3 frames" in out
    folder = tmp_path / "out"
    assert contents(folder) == [
        "cat.json", "cat.png", "cat.rle.json", "sub", "sub/clip.jsonl", "sub/clip.mp4"
    ]  # fmt: skip
    lines = [json.loads(line) for line in (folder / "sub/clip.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert {line["file_name"] for line in lines} == {"sub/clip.MP4"}
    assert all("segmentation" in found for line in lines for found in line["detections"])
    reader = VideoReader(folder / "sub/clip.mp4")
    assert len(list(reader)) == 3
    reader.close()

    status, _, err = predict(source, "--format", "coco")
    assert status == 2 and "--format coco is for images" in err
    broken = tmp_path / "broken.avi"
    broken.write_text("no video")
    status, out, err = predict(broken, source, "--format", "json", "--overwrite")
    assert status == 1 and "broken.avi: cannot be read as a video" in err
    assert err.count("\n") == 1 and "1 of 2 videos done" in out
    monkeypatch.setitem(sys.modules, "av", None)
    status, _, err = predict(source, "--overwrite")
    assert status == 1 and "pip install 'maskrcnn_scratch[video]'" in err and err.count("\n") == 1
