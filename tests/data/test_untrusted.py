"""Whatever annotation files and image folders hold: items, or one line with file and id."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_scratch.cli import main
from maskrcnn_scratch.cli.data import convert
from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.image import image_size, read_image
from maskrcnn_scratch.dataset_check.checks import check_dataset
from maskrcnn_scratch.dataset_check.prepare import prepare
from maskrcnn_scratch.evaluation.coco_ap import score
from maskrcnn_scratch.inference.image_jobs import read_annotations
from tests.messages import check_one_line

SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0]
GOOD: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "height": 10, "width": 12},
        {"id": 2, "file_name": "b.png", "height": 10, "width": 12},
    ],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 3, "bbox": [2, 2, 6, 6], "area": 36, "iscrowd": 0,
         "segmentation": [SQUARE]},
        {"id": 6, "image_id": 2, "category_id": 3, "bbox": [2, 2, 6, 6], "area": 36, "iscrowd": 0,
         "segmentation": {"size": [10, 12], "counts": [20, 5, 95]}},
    ],
    "categories": [{"id": 3, "name": "cat"}],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (12, 10)).save(tmp_path / name)
    return tmp_path


def changed(place: tuple[Any, ...], value: object) -> dict[str, Any]:
    content = copy.deepcopy(GOOD)
    inside: Any = content
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    return content


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for name, item in inside:
        found.append((*path, name))
        if isinstance(item, (dict, list)):
            found += places(item, (*path, name))
    return found


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.integers(-3, 130),
    st.sampled_from([10**400, -(10**400), 60000, 1e300]),
    st.sampled_from([2**28, 2**31, 2**32, 2**32 + 20, 2**63, 2**64]),
)  # fmt: skip
JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), NUMBERS, st.text(max_size=5),
        st.sampled_from(["\ud800", "../a.png", "/etc/passwd", "\0", "x" * 10**5, "S1", "é"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=7),
        st.lists(NUMBERS, min_size=6, max_size=6),
        st.dictionaries(st.sampled_from(["size", "counts", "id", "a"]), inner, max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip


def read_all(file: Path, folder: Path) -> None:
    dataset = CocoDataset(file, folder)
    for index in range(len(dataset)):
        dataset[index]


@pytest.mark.slow
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(places(GOOD)), value=JUNK)
@pytest.mark.filterwarnings("ignore")
def test_items_or_one_line(place: tuple[Any, ...], value: object, folder: Path) -> None:
    file = folder / "instances.json"
    file.write_text(json.dumps(changed(place, value)))
    try:
        read_all(file, folder)
    except (ValueError, FileNotFoundError) as error:
        check_one_line(error, folder)
        inside_annotation = place[:1] == ("annotations",) and len(place) > 2 and place[2] != "id"
        check_one_line(error, f"annotation {5 + place[1]}" if inside_annotation else folder)
    report = check_dataset(file, folder)
    json.dumps(report.to_json())


def convert_into_new_folder(file: Path) -> None:
    with TemporaryDirectory() as destination:
        convert(file, Path(destination) / "new", split=(0.5, 0.5))


def read_in_place(file: Path) -> None:
    with TemporaryDirectory() as folder:
        prepare(file, None, Path(folder) / "copy.json", skip_bad=True)


READERS: dict[str, Callable[[Path], object]] = {
    "convert": convert_into_new_folder,
    "train": read_in_place,
    "evaluate": lambda file: [score(file, [], kind) for kind in ("bbox", "segm")],
    "predict": read_annotations,
}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(places(GOOD)), value=JUNK)
@pytest.mark.parametrize("command", READERS)
@pytest.mark.filterwarnings("ignore")
def test_every_command_reads_or_has_one_line(
    command: str, place: tuple[Any, ...], value: object, folder: Path
) -> None:
    file = folder / "instances.json"
    file.write_text(json.dumps(changed(place, value)))
    try:
        READERS[command](file)
    except (ValueError, FileNotFoundError) as error:
        check_one_line(error, folder)


@pytest.mark.parametrize(
    "place, value, reason",
    [
        (("annotations", 1, "segmentation", "size"), 5, "annotation 6: .*size is not"),
        (("annotations", 1, "segmentation", "counts"), [2**32 + 20, 5], "annotation 6: .*run of"),
        (("annotations", 0, "segmentation", 0, 3), {}, "annotation 5: a polygon is x0, y0"),
        (("annotations", 0, "segmentation", 0, 3), 10**400, "annotation 5: a polygon is x0, y0"),
        (("annotations", 0, "bbox", 0), 10**400, "annotation 5: bbox is not four numbers"),
        (("annotations", 0, "area"), 10**400, "annotation 5: area is not a number"),
        (("images", 0, "height"), 10**400, "image id 1 "),
        (("images", 0, "file_name"), "\ud800", "image id 1: text with lone surrogates"),
        (("categories", 0, "name"), "\ud800", "categories: text with lone surrogates"),
        (("images", 0, "file_name"), "x" * 10**6, "image id 1: no file can have this file_name"),
        (("images", 0, "file_name"), "../c.png", "image id 1: file_name leads out .*--allow"),
        (("images", 0, "file_name"), "/etc/passwd", "image id 1: file_name leads out"),
        (("images", 0, "file_name"), "b/../../c.png", "image id 1: file_name leads out"),
    ],
)  # fmt: skip
def test_one_line(place: tuple[Any, ...], value: object, reason: str, folder: Path) -> None:
    file = folder / "instances.json"
    file.write_text(json.dumps(changed(place, value)))
    with pytest.raises(ValueError, match=f"^{file}: {reason}") as error:
        read_all(file, folder)
    assert "\n" not in str(error.value)


def test_masks_are_drawn_after_the_image_was_looked_at(folder: Path) -> None:
    content = changed(("images", 0, "height"), 60000)
    content["images"][0]["width"] = 60000  # 3.6 GB per mask
    content["annotations"] += [{**content["annotations"][0], "id": 100 + n} for n in range(100)]
    (folder / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.png: image id 1 is 10 x 12 .*but 60000 x 60000"):
        read_all(folder / "instances.json", folder)


def test_one_long_name_does_not_cost_all_images_its_memory(folder: Path) -> None:
    content = copy.deepcopy(GOOD)
    content["images"] += [{**GOOD["images"][0], "id": 10 + n} for n in range(2000)]
    content["images"][1]["file_name"] = "x" * 4000
    (folder / "instances.json").write_text(json.dumps(content))
    dataset = CocoDataset(folder / "instances.json", folder)
    assert dataset.file_name(1) == "x" * 4000 and dataset.file_name(2) == "a.png"
    arrays = [value for value in vars(dataset).values() if hasattr(value, "nbytes")]
    assert sum(array.nbytes for array in arrays) < 10**6


def test_outside_of_the_folder(folder: Path, capsys: Any) -> None:
    inside = folder / "inside"
    inside.mkdir()
    (folder / "b.png").rename(inside / "b.png")
    file = folder / "instances.json"
    file.write_text(json.dumps(changed(("images", 0, "file_name"), "../a.png")))
    with pytest.raises(ValueError, match=f"^{file}: image id 1: file_name leads out .*--allow-out"):
        CocoDataset(file, inside)[0]
    read_all_allowed = CocoDataset(file, inside, allow_outside=True)
    assert read_all_allowed[0][0].shape == (3, 10, 12)
    assert main(["data", "check", str(file), "--images", str(inside)]) == 1
    out = capsys.readouterr().out
    assert "error: image file outside of the folder" in out and "../a.png" in out
    command = ["train", "--train-annotations", str(file), "--train-images", str(inside)]
    small = ["--architecture", "small", "--weights", "none", "--min-size", "64"]
    small += ["--num-workers", "0", "--output", str(folder / "run"), "--device", "cpu"]
    assert main([*command, *small]) == 1
    err = capsys.readouterr().err
    assert "--allow-outside" in err and "Traceback" not in err
    assert err.count("maskrcnn train: error: ") == 1


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    started = time.monotonic()
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=rf"^{path}: no image file but a {kind}$"):
            read(path)
    assert time.monotonic() - started < 60


def test_formats_that_run_programs_are_not_tried(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=rf"^{path}: cannot be read as an image .*identify"):
        read_image(path)
    for suffix in ("png", "jpg", "bmp", "tif", "gif", "webp", "ppm"):
        Image.new("RGB", (4, 3)).save(tmp_path / f"b.{suffix}")
        assert image_size(tmp_path / f"b.{suffix}") == (3, 4)
