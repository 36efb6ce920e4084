"""The files of annotation tools, which the format allows or nearly allows, are read and scored."""

import copy
import json

import pytest

from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.dataset_check.checks import check_dataset
from maskrcnn_scratch.evaluation.coco_ap import score


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A data set with polygons: the rectangles around its objects."""
    folder = tmp_path_factory.mktemp("shapes")
    content = json.loads(write_coco(ShapesDataset(2, side=64), folder).read_text())
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotation |= {"segmentation": [corners], "area": width * height}
    return folder, content


def strings(content):
    for annotation in content["annotations"]:
        for key in ("id", "image_id", "category_id", "area", "iscrowd"):
            annotation[key] = str(annotation[key])
        annotation["bbox"] = list(map(str, annotation["bbox"]))
        annotation["segmentation"] = [list(map(str, annotation["segmentation"][0]))]
    for entry in content["images"] + content["categories"]:
        entry["id"] = str(entry["id"])
    for image in content["images"]:
        image |= {"height": "64", "width": "64.0"}


def flat_polygons(content):
    for annotation in content["annotations"]:
        (annotation["segmentation"],) = annotation["segmentation"]


def integer_names(content):
    for category in content["categories"]:
        category["name"] = category["id"]


def each(key, **fields):
    def change(content):
        for entry in content[key]:
            entry.update(fields)

    return change


def top(**fields):
    return lambda content: content.update(fields)


QUIET = {
    "year is empty": top(info={"year": "", "version": 1.0, "date_created": 0}),
    "year is text": top(info={"year": "2024"}),
    "info is a list": top(info=[]),
    "license is text": each("images", license="None", date_captured=0),
    "licenses are null": top(licenses=None),
    "licenses are text": top(licenses="None"),
    "unknown fields": each("annotations", attributes={"occluded": False}, track_id=None),
    "supercategory is null": each("categories", supercategory=None),
    "sizes are floats": each("images", height=64.0, width=64.0),
    "iscrowd is null": each("annotations", iscrowd=None),
    "iscrowd is a float": each("annotations", iscrowd=0.0),
    "iscrowd is a bool": each("annotations", iscrowd=False),
    "ignore": each("annotations", ignore=0),
}
CONVERTED = {
    "numbers given as text": strings,
    "polygons that are not in a list": flat_polygons,
    "names that are not text": integer_names,
}


def write(shapes, tmp_path, change, encoding="utf-8"):
    content = copy.deepcopy(shapes[1])
    change(content)
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content), encoding=encoding)
    return file


def assert_read_and_scored(file, folder, content):
    dataset = CocoDataset(file, folder)
    assert sum(len(dataset[index][1]["boxes"]) for index in range(len(dataset))) == len(
        content["annotations"]
    )
    results = [{**annotation, "score": 0.9} for annotation in content["annotations"]]
    for iou_type in ("bbox", "segm"):
        assert score(file, results, iou_type).stats[0] == pytest.approx(1)
    assert check_dataset(file, folder).of("error") == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", QUIET)
def test_what_nothing_reads_may_have_any_content(shapes, tmp_path, kind):
    file = write(shapes, tmp_path, QUIET[kind])
    assert_read_and_scored(file, *shapes)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(shapes, tmp_path, encoding):
    file = write(shapes, tmp_path, lambda content: None, encoding)
    assert_read_and_scored(file, *shapes)


@pytest.mark.parametrize("kind", CONVERTED)
def test_conversions_are_one_warning(shapes, tmp_path, kind):
    file = write(shapes, tmp_path, CONVERTED[kind])
    with pytest.warns(UserWarning, match=rf"instances\.json: converted {kind} \(\d+\)$") as told:
        CocoDataset(file, shapes[0])
    assert len(told) == 1
    with pytest.warns(UserWarning, match="converted"):
        assert_read_and_scored(file, *shapes)
    kinds = {problem.kind for problem in check_dataset(file, shapes[0]).problems}
    assert "values of an unusual type" in kinds


def test_a_file_without_annotations_has_none(shapes, tmp_path):
    file = write(shapes, tmp_path, lambda content: content.pop("annotations"))
    assert len(CocoDataset(file, shapes[0])) == 2
    assert score(file, []).stats[0] == -1


@pytest.mark.filterwarnings("ignore:.*converted")
def test_files_of_the_tools(data_root):
    folder = data_root / "exports"
    for name in (
        "cvat_export/annotations/instances_default",
        "cvat_export_old/annotations/instances_default",
        "roboflow/train/_annotations.coco", "label_studio_windows/result", "via/via_export_coco",
        "good/instances", "json/info_list", "json/iscrowd_null", "json/iscrowd_float",
        "json/string_bbox", "json/segmentation_strings", "json/utf8_bom", "json/category_name_int",
        "json/duplicate_names", "json/val_no_objects", "json/no_annotations_key",
    ):  # fmt: skip
        for iou_type in ("bbox", "segm"):
            score(folder / f"{name}.json", [], iou_type)
