"""EXIF orientation, limit of pixels, missing files, names that lead out: in every command."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model
from maskrcnn_scratch.checkpoint import save_checkpoint
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.loader import evaluation_loader, without_worker_traceback
from maskrcnn_scratch.data.pixel_limit import current_pixel_limit, pixel_limit

MODEL = ModelConfig(
    architecture="small",
    weights="none",
    widths=(8, 8, 8, 8),
    min_size=(48,),
    max_size=64,
    anchor_sizes=(8, 12, 16, 24, 32),
    pre_nms_top_n=20,
    post_nms_top_n=10,
    rpn_samples=16,
    box_samples=16,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(MODEL, 2)
    content = {"model": model.state_dict(), "config": {"model": asdict(MODEL)}}
    save_checkpoint({**content, "class_names": {1: "a"}, "category_labels": {1: 1}}, path)
    return path


def write_data(folder: Path, size: tuple[int, int], orientation: int = 1, **image: Any) -> Path:
    """One JPEG of ``size`` (height, width) as stored, and annotations of that size."""
    folder.mkdir(exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size[::-1], (90, 120, 60)).save(folder / "a.jpg", exif=exif)
    entry = {"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1], **image}
    annotation = {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 16, 16], "area": 256,
        "iscrowd": 0, "segmentation": [[4, 4, 20, 4, 20, 20, 4, 20]],
    }  # fmt: skip
    content = {
        "images": [entry], "annotations": [annotation], "categories": [{"id": 1, "name": "a"}],
    }  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def command(name: str, file: Path, checkpoint: Path, tmp_path: Path) -> list[str]:
    """The words of a command that reads the images of an annotation file."""
    weights, image = ["--weights", str(checkpoint)], str(file.parent / "a.jpg")
    size = [str(value) for value in MODEL.anchor_sizes]
    options = {
        "data check": [str(file)],
        "evaluate": [*weights, "--annotations", str(file), "--num-workers", "0"],
        "predict": [*weights, "--annotations", str(file), "--out", str(tmp_path / "out")],
        "inspect": [
            image, *weights, "--annotations", str(file), "--out", str(tmp_path / "a.html"),
        ],
        "train": [
            "--train-annotations", str(file), "--output", str(tmp_path / "run"),
            "--architecture", "small", "--weights", "none", "--widths", "8", "8", "8", "8",
            "--min-size", "48", "--max-size", "64", "--anchor-sizes", *size, "--epochs", "1",
            "--batch-size", "1", "--num-workers", "0", "--no-pictures", "--no-tensorboard",
            "--post-nms-top-n", "20", "--rpn-samples", "16", "--box-samples", "16",
        ],
    }  # fmt: skip
    device = [] if name == "data check" else ["--device", "cpu"]
    return [*name.split(), *options[name], *device]


COMMANDS = ("data check", "evaluate", "predict", "inspect", "train")


@pytest.mark.parametrize("name", COMMANDS)
def test_annotations_of_the_stored_image(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Orientation 6 swaps the sides: the size tells that the annotations are not for that."""
    words = command(name, write_data(tmp_path / "data", (32, 40), 6), checkpoint, tmp_path)
    assert main(words) == 1
    shown = capsys.readouterr()
    assert "--no-exif" in shown.out + shown.err
    assert main([*words, "--no-exif"]) == 0
    assert "no-exif" not in "".join(capsys.readouterr().err)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("size, orientation", [((36, 36), 6), ((32, 40), 3)])
def test_a_turn_that_the_size_does_not_tell(
    name: str,
    size: tuple[int, int],
    orientation: int,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_data(tmp_path / "data", size, orientation)
    words = command(name, file, checkpoint, tmp_path)
    if name == "data check":
        assert main(words) == 0
        assert "a.jpg: EXIF orientation" in capsys.readouterr().out
    else:
        with pytest.warns(UserWarning, match=r"a\.jpg.* turned by .*--no-exif"):
            assert main(words) == 0


def test_a_turn_that_the_size_tells_is_no_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_data(tmp_path / "data", (32, 40), 6, height=40, width=32)
    assert main(["data", "check", str(file)]) == 0
    assert "EXIF" not in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_max_pixels(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(name, write_data(tmp_path / "data", (32, 40)), checkpoint, tmp_path)
    before = current_pixel_limit()
    assert main([*words, "--max-pixels", str(32 * 40 - 1)]) == 1
    shown = capsys.readouterr()
    assert "a.jpg: too many pixels, the limit is 1,279; --max-pixels" in shown.out + shown.err
    assert main([*words, "--max-pixels", str(32 * 40)]) == 0
    assert current_pixel_limit() == before


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_have_the_limit_of_their_parent_and_end(method: str, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    file = write_data(tmp_path / "data", (32, 40))
    with pixel_limit(1279):
        loader = evaluation_loader(CocoDataset(file, file.parent), num_workers=1)
        loader.multiprocessing_context = method
        with pytest.raises(ValueError, match="the limit is 1,279"):
            list(without_worker_traceback(loader))
    for worker in set(multiprocessing.active_children()) - before:
        worker.join(30)  # it was told to end
        assert not worker.is_alive()


def test_several_pages_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_data(tmp_path / "data", (32, 40), file_name="a.tif")
    pages = [Image.new("L", (40, 32), gray) for gray in (50, 150)]
    pages[0].save(tmp_path / "data" / "a.tif", save_all=True, append_images=pages[1:])
    assert main(["data", "check", str(file)]) == 0
    assert "only the first of 2 is used" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*COMMANDS, "data convert"])
def test_a_name_that_leads_out_of_the_folder(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_data(tmp_path / "data", (32, 40), file_name="../b.jpg")
    (tmp_path / "data" / "a.jpg").rename(tmp_path / "b.jpg")
    if name == "inspect":  # is given its images, and looks for them by name
        return
    if name == "data convert":
        words = ["data", "convert", str(file), str(tmp_path / "converted")]
    else:
        words = command(name, file, checkpoint, tmp_path)
    assert main(words) != 0
    shown = capsys.readouterr()
    assert "leads out of the image folder" in shown.out + shown.err
    assert not (tmp_path / "converted").exists()
    if name != "predict":
        assert main([*words, "--allow-outside"]) == 0


def test_what_convert_writes_stays_inside(tmp_path: Path) -> None:
    """Backslashes, addresses and parts that lead out; null and other keys of the file are gone."""
    names = ["sub\\a.jpg", "http://host/data/b.jpg?x=1", "../../c.jpg", "d.jpg"]
    file = write_data(tmp_path / "data", (32, 40))
    content = json.loads(file.read_text())
    content["images"] = [
        {**content["images"][0], "id": id, "file_name": name} for id, name in enumerate(names, 1)
    ]
    content["annotations"][0]["iscrowd"] = None
    file.write_text(json.dumps({**content, "info": [], "licenses": None}))
    image = (tmp_path / "data" / "a.jpg").read_bytes()
    for name in ("sub/a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(image)
    words = ["data", "convert", str(file), str(tmp_path / "out"), "--images", str(file.parent)]
    assert main(words) == 1  # d.jpg is missing
    assert not (tmp_path / "out").exists()
    (tmp_path / "data" / "d.jpg").write_bytes(image)
    assert main(words) == 0
    written = json.loads((tmp_path / "out/annotations/instances_all.json").read_text())
    assert written.keys() == {"images", "annotations", "categories"}
    assert written["annotations"][0]["iscrowd"] == 0
    found = [entry["file_name"] for entry in written["images"]]
    assert found == ["sub/a.jpg", "data/b.jpg", "c.jpg", "d.jpg"]
    assert all((tmp_path / "out/images" / name).is_file() for name in found)


def test_a_missing_image_is_told_before_the_model_runs(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_data(tmp_path / "data", (32, 40))
    (tmp_path / "data" / "a.jpg").unlink()
    assert main(command("evaluate", file, checkpoint, tmp_path)) == 1
    assert "a.jpg: no such image file (1 of 1 are missing)" in capsys.readouterr().err
