"""``maskrcnn predict`` on files and folders, good and bad."""

import json
import shutil
import sys
import warnings
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as pycoco

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model, load_trained
from maskrcnn_scratch.checkpoint import save_checkpoint
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.cli.images import find_files, find_images, numbered_folder
from maskrcnn_scratch.data.shapes import ShapesDataset
from maskrcnn_scratch.data.to_coco import to_coco
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
    """Runs the command into ``tmp_path / "out"``; returns exit status, stdout and stderr.

    ``run.warnings`` has the warnings of the last call, one per line.
    """

    def run(*args, weights=checkpoint, threshold=THRESHOLD):
        args = [*map(str, args), "--weights", str(weights), "--out", str(tmp_path / "out")]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            status = main(["predict", *args, "--score-threshold", str(threshold)])
        run.warnings = "".join(f"{warning.message}\n" for warning in caught)
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


def write_annotations(path, images, names=("dog", "cat")):
    categories = [{"id": 5 + index, "name": name} for index, name in enumerate(names)]
    entries = [{"id": id, "file_name": name, **rest} for id, name, rest in images]
    path.write_text(json.dumps({"images": entries, "annotations": [], "categories": categories}))
    return path


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
