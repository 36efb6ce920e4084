"""The dataset check finds and names every problem, and finds none in good data."""

import json

import pytest
from PIL import Image

from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.dataset_check.checks import check_dataset
from maskrcnn_scratch.dataset_check.model_fit import Geometry
from maskrcnn_scratch.ops import rle

FITTING = Geometry(min_size=128, max_size=128, anchor_sizes=(16, 32, 64, 96, 128))


@pytest.fixture
def check(tmp_path):
    """Applies ``change`` to a good data set and returns the report."""
    file = write_coco(ShapesDataset(4, seed=1), tmp_path)

    def check(change=lambda content: None, **options):
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        report = check_dataset(file, tmp_path, FITTING, **options)
        json.dumps(report.to_json())
        return report

    check.folder = tmp_path
    return check


def test_good_data_has_no_problem(check):
    report = check()
    assert report.problems == []
    assert report.statistics["images"] == 4
    assert report.statistics["matching"]["objects"] >= 1
    assert sum(report.fit.roi_levels.values()) == report.statistics["annotations"]


def test_real_data_has_no_error(data_root):
    folder = data_root / "coco_tiny"
    file = folder / "annotations" / "instances_val2017.json"
    report = check_dataset(file, folder / "val2017")
    assert report.of("error") == []
    assert report.statistics["crowds"] == 5
    assert report.statistics["images_without_annotations"] == 2
    assert report.fit.unmatched
    assert all(problem.annotation_id for problem in report.problems if "anchor" in problem.kind)


def edit(key, index=0, **fields):
    def change(content):
        content[key][index].update(fields)

    return change


def drop(key, field):
    def change(content):
        del content[key][0][field]

    return change


ANNOTATION_PROBLEMS = {
    "degenerate box": ("error", edit("annotations", bbox=[5, 5, 0, 9]), "width 0, height 9"),
    "box outside its image": ("error", edit("annotations", bbox=[500, 5, 9, 9]), "x 500"),
    "box exceeds its image": ("warning", edit("annotations", bbox=[90, 9, 90, 9]), "90"),
    "box smaller than one pixel": ("warning", edit("annotations", bbox=[9, 9, 0.4, 9]), "0.4"),
    "bad box": ("error", edit("annotations", bbox=[1, 2, 3]), "not four numbers"),
    "bad mask": (
        "error",
        edit("annotations", segmentation=[[1, 2, 3, 4]]),
        "at least 3 points, got 4 numbers",
    ),
    "box and mask disagree": ("warning", edit("annotations", bbox=[1, 2, 120, 120]), "IoU"),
    "unknown category": ("error", edit("annotations", category_id=0), "0 is the background"),
    "unknown image": ("error", edit("annotations", image_id=77), "id 77"),
    "bad area": ("error", edit("annotations", area=-4), "area is not a number of pixels: -4"),
    "bad iscrowd": ("error", edit("annotations", iscrowd="no"), "iscrowd is neither 0 nor 1"),
    "no area": ("warning", drop("annotations", "area"), "evaluation"),
    "no iscrowd": ("warning", drop("annotations", "iscrowd"), "evaluation"),
}


@pytest.mark.parametrize("kind", ANNOTATION_PROBLEMS)
def test_annotation_problems_name_file_and_annotation(check, kind):
    severity, change, detail = ANNOTATION_PROBLEMS[kind]
    found = [problem for problem in check(change).problems if problem.kind == kind]
    assert len(found) == 1
    assert found[0].severity == severity
    assert detail in found[0].detail
    assert found[0].annotation_id == 1
    assert found[0].image == (None if kind == "unknown image" else "00000.png")


@pytest.mark.parametrize(
    ("segmentation", "detail"),
    [
        ({"size": [9, 9], "counts": [81]}, "mask is 9 x 9"),
        ({"size": [128, 128], "counts": "~~"}, "bad character"),
        ({"size": [128, 128], "counts": [128 * 128]}, "no pixel"),
        ([[200, 200, 220, 200, 220, 220]], "no pixel"),
        ([1, 2, [30, 4], 30, 40], "a list of polygons is needed"),
        ({"size": [128, 128], "counts": [-50, 4850]}, "no list of run lengths"),
        ("masks/1.png", "neither polygons nor RLE"),
    ],
)
def test_bad_masks(check, segmentation, detail):
    (found,) = check(edit("annotations", segmentation=segmentation)).of("error")
    assert found.kind == "bad mask"
    assert detail in found.detail


@pytest.mark.parametrize(
    "change",
    [drop("annotations", "segmentation")]
    + [edit("annotations", segmentation=nothing) for nothing in (None, [], [[]])],
)
def test_objects_with_a_box_only_are_no_error(check, change):
    report = check(change)
    assert report.of("error") == []
    (found,) = [problem for problem in report.problems if problem.kind == "object without mask"]
    assert found.annotation_id == 1


def test_coordinates_in_0_1_are_named(check):
    def to_fractions(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = [value / 128 for value in annotation["bbox"]]
            x, y, width, height = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height]]

    report = check(to_fractions)
    assert {problem.kind for problem in report.of("error")} == {"coordinates in 0-1"}
    assert len(report.of("error")) == report.statistics["annotations"]


def test_degenerate_parts_of_good_objects_are_dropped(check):
    def add_part(content):
        polygon = [10, 10, 40, 10, 40, 40, 10, 40]
        content["annotations"][0] |= {
            "bbox": [10, 10, 30, 30], "segmentation": [[10, 10, 12, 12], polygon, []],
        }  # fmt: skip

    report = check(add_part)
    assert report.of("error") == []
    (found,) = [each for each in report.problems if each.kind == "values of an unusual type"]
    assert "objects with parts of fewer than 3 points, without those (1)" in found.detail


ENTRY_PROBLEMS = {
    "annotation id given twice": edit("annotations", 1, id=1),
    "image id given twice": edit("images", 1, id=1),
    "category id given twice": edit("categories", 1, id=1),
    "category name given twice": edit("categories", 1, name="circle"),
    "image file given twice": edit("images", 1, file_name="00000.png"),
    "image size differs": edit("images", height=127),
    "image file missing": edit("images", file_name="gone.png"),
    "image entry incomplete": edit("images", height="big"),
    "annotation entry incomplete": edit("annotations", image_id=[1]),
    "category entry incomplete": edit("categories", id="one"),
    "no categories": lambda content: content.update(categories=[]),
    "no images": lambda content: content.update(images=[]),
    "no annotations": lambda content: content.update(annotations=[]),
    "annotations that cannot be read": lambda content: content.update(images=3),
    "background as a category": edit("categories", name="Background"),
    "values of an unusual type": edit("categories", id="1"),
    "category id 0": lambda content: content["categories"].append({"id": 0, "name": "zero"}),
    "category without annotations": lambda content: content["categories"].append(
        {"id": 9, "name": "star"}
    ),
    "category with crowds only": lambda content: [
        annotation.update(iscrowd=1) for annotation in content["annotations"]
    ],
    "object annotated twice": lambda content: content["annotations"].append(
        {**content["annotations"][0], "id": 999}
    ),
}


@pytest.mark.parametrize("kind", ENTRY_PROBLEMS)
def test_problems_of_entries(check, kind):
    assert kind in {problem.kind for problem in check(ENTRY_PROBLEMS[kind]).problems}


def test_truncated_image_is_found_unless_only_headers_are_read(check):
    path = check.folder / "cut.jpg"
    Image.open(check.folder / "00002.png").save(path)
    path.write_bytes(path.read_bytes()[:2000])
    change = edit("images", 2, file_name="cut.jpg")
    (found,) = check(change).of("error")
    assert (found.kind, found.image) == ("image file unreadable", "cut.jpg")
    assert "truncated" in found.detail
    assert check(decode_images=False).of("error") == []


def test_exif_orientation_is_explained(check):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (128, 100)).save(check.folder / "00000.png", exif=exif)
    (found,) = check(edit("images", height=100)).of("error")[:1]
    assert "they agree with --no-exif" in found.detail


def test_objects_that_no_anchor_matches_are_named(check):
    def change(content):
        mask = rle.from_polygons([[5, 5, 120, 5, 120, 7, 5, 7]], (128, 128))
        content["annotations"][0] |= {"bbox": [5, 5, 115, 2], "segmentation": mask}

    (found,) = check(change).of("warning")
    assert "no anchor matches" in found.kind
    assert found.annotation_id == 1
    assert "2 x 115" in found.detail


def test_crowds_need_no_anchor(check):
    def change(content):
        content["annotations"][0] |= {"bbox": [5, 5, 115, 2], "iscrowd": 1}

    assert not any("anchor" in problem.kind for problem in check(change).problems)


def test_missing_file(tmp_path):
    report = check_dataset(tmp_path / "gone.json", tmp_path)
    (found,) = report.problems
    assert found.kind == "annotations that cannot be read"
    assert "gone.json: no such file" in found.detail
