"""Annotation files that are wrong: each error is one line that names the file."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskrcnn_scratch.data.formats import read_dataset
from tests.data.formats.datasets import (
    cvat,
    fiftyone,
    label_studio,
    labelme,
    supervisely,
    via,
    voc,
    write,
    yolo,
)
from tests.data.test_untrusted import JUNK, places
from tests.messages import check_one_line


def test_masks_that_are_larger_than_they_say(tmp_path: Path) -> None:
    """A few kilobytes of zeros become gigabytes; it ends at the size of the image."""
    supervisely(tmp_path / "s", "bitmap")
    file = tmp_path / "s/ds/ann/a.png.json"
    content = json.loads(file.read_text())
    bomb = base64.b64encode(zlib.compress(bytes(2**24), 9)).decode()
    content["objects"][0]["bitmap"]["data"] = bomb
    write(file, content)
    with pytest.raises(ValueError, match=r"a\.png\.json: .*larger than its image"):
        read_dataset(tmp_path / "s")


JSON_FORMATS = {
    "labelme": (labelme, "a.json"),
    "via": (via, "via.json"),
    "label studio": (label_studio, "export.json"),
    "supervisely": (supervisely, "ds/ann/a.png.json"),
    "supervisely bitmap": (lambda folder: supervisely(folder, "bitmap"), "ds/ann/a.png.json"),
    "fiftyone": (fiftyone, "samples.json"),
}


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(choices=st.data())
@pytest.mark.parametrize("name", JSON_FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_annotations_or_one_line(name: str, choices: st.DataObject, tmp_path: Path) -> None:
    """Any value anywhere in the JSON file of a tool."""
    write_dataset, file = JSON_FORMATS[name]
    folder = tmp_path / "junk"
    if not folder.exists():
        write_dataset(folder)
        (folder / file).rename(tmp_path / "good.json")
    content = json.loads((tmp_path / "good.json").read_text())
    place = choices.draw(st.sampled_from(places(content)))
    inside = content
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = choices.draw(JUNK)
    write(folder / file, content)
    try:
        read_dataset(folder)
    except (ValueError, FileNotFoundError) as error:
        check_one_line(error, folder)


BROKEN = {
    "yolo not numbers": ("train/labels/a.txt", "1 a b c d\n", yolo, "a.txt, line 1: not numbers"),
    "yolo in pixels": ("train/labels/a.txt", "1 20 15 20 20\n", yolo, "fractions of the image"),
    "yolo unknown class": ("train/labels/a.txt", "9 .5 .5 .1 .1\n", yolo, "class 9"),
    "yolo odd": ("train/labels/a.txt", "1 .5 .5 .1 .1 .1 .1 .1\n", yolo, "neither a box nor"),
    "voc not xml": ("Annotations/a.xml", "<annotation>", voc, "a.xml: not XML"),
    "voc entities": ("Annotations/a.xml", "<!DOCTYPE x [<!ENTITY a 'b'>]><x/>", voc, "entities"),
    "cvat run lengths": (
        "annotations.xml",
        '<annotations><image name="a.png" width="60" height="40"><mask label="cat" rle="1,2" '
        'left="0" top="0" width="9" height="9"/></image></annotations>',
        cvat,
        "do not fill 9 x 9",
    ),
    "labelme height": (
        "a.json",
        '{"shapes": [{"label": "cat", "points": [[1, 1], [9, 1], [9, 9]]}], "imagePath": "a.png", '
        f'"imageHeight": {2**63}, "imageWidth": 60}}',
        labelme,
        f"a.png: {2**63} x 60 .* are more than",
    ),
    "supervisely size": (
        "ds/ann/a.png.json",
        '{"size": {"height": 67108864, "width": 60}, "objects": []}',
        supervisely,
        "a.png: 67108864 x 60 .* are more than",
    ),
    "labelme point": (
        "a.json",
        '{"shapes": [{"label": "cat", "points": [[1, 1], [9, 1], [9, Infinity]]}], '
        '"imagePath": "a.png", "imageHeight": 40, "imageWidth": 60}',
        labelme,
        r"a\.png: .*finite",
    ),
    "unknown json": ("via.json", '{"hello": 1}', via, "none of the formats"),
    "via missing image": (
        "via.json", '{"k": {"filename": "b.png", "regions": []}}', via, "image b.png was not found",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    file, content, write_dataset, message = BROKEN[name]
    source = write_dataset(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_dataset(source)
