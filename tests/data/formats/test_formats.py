"""The same object in the form of each tool: read, converted, checked and scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_scratch.cli import main
from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.formats import read_dataset
from maskrcnn_scratch.ops import rle
from tests.data.formats.datasets import ALL, BOX, HEIGHT, MASK, WIDTH, WITH_OUTLINE, write


@pytest.mark.parametrize("write_dataset", ALL.values(), ids=ALL.keys())
def test_the_object_is_read(write_dataset: Callable[[Path], Path], tmp_path: Path) -> None:
    content, folder, _ = read_dataset(write_dataset(tmp_path))
    (entry,), (annotation,) = content["images"], content["annotations"]
    assert (entry["height"], entry["width"]) == (HEIGHT, WIDTH)
    assert (folder / entry["file_name"]).is_file()
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert names[annotation["category_id"]] in ("cat", "object")
    assert annotation["bbox"] == pytest.approx([10, 5, 20, 20], abs=1e-6)
    assert annotation["area"] == pytest.approx(400)
    if write_dataset in WITH_OUTLINE.values():
        segmentation = annotation["segmentation"].unpack()
        mask = rle.decode(rle.from_segmentation(segmentation, (HEIGHT, WIDTH)))
        assert np.array_equal(mask, MASK)
    else:
        assert annotation["segmentation"].unpack() == []


@pytest.mark.parametrize("write_dataset", WITH_OUTLINE.values(), ids=WITH_OUTLINE.keys())
def test_what_is_converted_can_be_trained_on(
    write_dataset: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = write_dataset(tmp_path / "source")
    assert main(["data", "convert", str(source), str(tmp_path / "out")]) == 0
    dataset = CocoDataset(tmp_path / "out/annotations/instances_all.json", tmp_path / "out/images")
    _, target = dataset[0]
    assert target["boxes"].tolist() == [list(BOX)]
    assert np.array_equal(target["masks"][0].numpy(), MASK)


@pytest.mark.parametrize("write_dataset", ALL.values(), ids=ALL.keys())
def test_every_format_is_checked_and_scored(
    write_dataset: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write_dataset(tmp_path / "source"))
    assert main(["data", "check", source, "--json", str(tmp_path / "report.json")]) == 0
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["statistics"]["annotations"] == 1 and report["fit"] is not None
    content, *_ = read_dataset(Path(source))
    fields = ("image_id", "category_id", "bbox")
    results = [{**{key: one[key] for key in fields}, "score": 1} for one in content["annotations"]]
    write(tmp_path / "results.json", results)
    capsys.readouterr()
    words = ["evaluate", "--annotations", source, "--results", str(tmp_path / "results.json")]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["boxes", "1.000"]
