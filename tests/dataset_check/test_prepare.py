"""Data sets before training: bad entries are refused or skipped, other formats are converted."""

import json
import warnings
from itertools import chain

import pytest

from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.dataset_check.prepare import BadDatasetError, prepare


@pytest.fixture
def data(tmp_path):
    """Applies a change to a good data set and returns its annotation file."""
    file = write_coco(ShapesDataset(4, seed=1), tmp_path / "data")

    def change(edit=lambda content: None):
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))
        return file

    return change


def normalised(content):
    for annotation in content["annotations"]:
        annotation["bbox"] = [value / 128 for value in annotation["bbox"]]
        annotation["segmentation"] = [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]


def first(key, **fields):
    return lambda content: content[key][0].update(fields)


BAD = {
    "bad mask": first("annotations", segmentation=[[9, 9, 9, 9, 9, 9]]),
    "unknown image": first("annotations", image_id=77),
    "unknown category": first("annotations", category_id=77),
    "bad box": first("annotations", bbox=[1, 2]),
    "degenerate box": first("annotations", bbox=[1, 2, 0, 4]),
    "annotation entry incomplete": first("annotations", image_id=None),
    "image entry incomplete": first("images", width=0),
    "image file missing": first("images", file_name="gone.png"),
    "image size differs": first("images", height=127),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_entries_are_refused_or_skipped(data, tmp_path, kind):
    file = data(BAD[kind])
    with pytest.raises(BadDatasetError, match=rf"errors in .*{kind}.* --skip-bad") as refused:
        prepare(file, None, tmp_path / "copy.json")
    assert kind in {problem.kind for problem in refused.value.problems}
    assert not (tmp_path / "copy.json").exists()
    with pytest.warns(UserWarning, match=rf"skipped . of . images and \d+ of .*{kind}"):
        found = prepare(file, None, tmp_path / "copy.json", skip_bad=True)
    assert found.annotation_file == tmp_path / "copy.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = CocoDataset(found.annotation_file, found.image_folder)
        targets = [dataset[index][1] for index in range(len(dataset))]
    assert len(dataset) == 4 - kind.startswith("image")
    ids = [target["annotation_ids"].tolist() for _, target in ShapesDataset(4, seed=1)]
    good = list(chain.from_iterable(ids))
    left = sorted(id for target in targets for id in target["annotation_ids"].tolist())
    if kind.startswith("image"):
        assert left == good[len(ids[0]) :]
    else:
        assert left == good[1:]


def test_nothing_left_is_refused(data, tmp_path):
    file = data(normalised)
    for skip_bad, message in ((False, r"\d+ coordinates in 0-1.* --skip-bad"),
                              (True, "nothing is left without errors")):  # fmt: skip
        with pytest.raises(BadDatasetError, match=message):
            prepare(file, None, tmp_path / "copy.json", skip_bad=skip_bad)


def test_good_files_are_used_where_they_are(data, tmp_path):
    file = data()
    found = prepare(file, None, tmp_path / "copy.json")
    assert (found.annotation_file, found.image_folder) == (file, file.parent)
    assert not (tmp_path / "copy.json").exists()


def test_other_formats_are_converted(data, tmp_path):
    file = data()
    for image in json.loads(file.read_text())["images"]:
        shape = {"label": "a", "shape_type": "rectangle", "points": [[5, 6], [40, 50]]}
        content = {
            "version": "5", "shapes": [shape], "imagePath": image["file_name"],
            "imageHeight": 128, "imageWidth": 128,
        }  # fmt: skip
        (file.parent / image["file_name"]).with_suffix(".json").write_text(json.dumps(content))
    file.unlink()
    found = prepare(file.parent, None, tmp_path / "copy.json")
    dataset = CocoDataset(found.annotation_file, found.image_folder)
    assert len(dataset) == 4 and dataset.class_names == {1: "a"}
    assert dataset[0][1]["boxes"].tolist() == [[5, 6, 40, 50]]


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    for name in ("a.json", "gone.json"):
        with pytest.raises((ValueError, OSError), match=name):
            prepare(tmp_path / name, None, tmp_path / "copy.json")
