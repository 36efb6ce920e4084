"""``maskrcnn data convert --split`` divides images and keeps categories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskrcnn_scratch.cli import main
from tests.data.formats.datasets import coco, image, write


def test_split_divides_images_and_keeps_categories(tmp_path: Path) -> None:
    for number in range(10):
        image(tmp_path / f"yolo/images/{number}.png")
        write(tmp_path / f"yolo/labels/{number}.txt", "0 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "yolo/data.yaml", "names: [cat, dog]\n")
    arguments = ["data", "convert", str(tmp_path / "yolo"), str(tmp_path / "out")]
    assert main([*arguments, "--split", "0.7", "0.3"]) == 0
    subsets = [
        json.loads((tmp_path / f"out/annotations/instances_{name}.json").read_text())
        for name in ("train", "val")
    ]
    files = [{one["file_name"] for one in subset["images"]} for subset in subsets]
    assert [len(names) for names in files] == [7, 3] and not files[0] & files[1]
    assert all(len(s["annotations"]) == len(s["images"]) for s in subsets)
    assert subsets[0]["categories"] == subsets[1]["categories"]
    assert len(subsets[0]["categories"]) == 2
    assert main([*arguments, "--split", "0.7", "0.3"]) == 1  # not into a folder that has something


@pytest.mark.parametrize("split", [("0.5",), ("0.9", "0.9"), ("-0.5", "1.5")])
def test_a_split_that_makes_no_sense_is_refused(split: tuple[str, ...], tmp_path: Path) -> None:
    source = str(coco(tmp_path / "a"))
    assert main(["data", "convert", source, str(tmp_path / "b"), "--split", *split]) == 2
    assert not (tmp_path / "b").exists()
