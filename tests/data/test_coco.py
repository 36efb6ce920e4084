"""The COCO reader: every form of annotation, and errors that name file and annotation."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.coco_json import read_coco_json
from maskrcnn_scratch.files import write_json
from maskrcnn_scratch.ops import rle

SIZE = (20, 30)
SQUARE = [[2, 3, 12, 3, 12, 9, 2, 9]]


def annotation(id, image_id=7, category_id=5, **fields):
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [2, 3, 10, 6],
        "segmentation": SQUARE,
        "area": 60,
        "iscrowd": 0,
        **fields,
    }


GOOD = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 3, "file_name": "b.png", "height": 20, "width": 30},
    ],
    "categories": [{"id": 90, "name": "brush"}, {"id": 5, "name": "airplane"}],
    "annotations": [annotation(1), annotation(2, category_id=90)],
}


@pytest.fixture
def write(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE[::-1], (255, 0, 0)).save(tmp_path / name)

    def write(change=lambda content: None):
        content = copy.deepcopy(GOOD)
        change(content)
        write_json(tmp_path / "gt.json", content)
        return tmp_path / "gt.json", tmp_path

    return write


def test_item(write):
    dataset = CocoDataset(*write())
    image, target = dataset[0]
    assert image.shape == (3, *SIZE)
    assert (image[0] == 1).all()
    assert target["boxes"].tolist() == [[2, 3, 12, 9]] * 2
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1, 2]
    assert target["labels"].dtype == torch.int64
    assert target["masks"].shape == (2, *SIZE)
    assert target["masks"].dtype == torch.uint8
    assert target["masks"].sum((1, 2)).tolist() == [60, 60]
    assert target["area"].tolist() == [60, 60]
    assert target["annotation_ids"].tolist() == [1, 2]
    assert (target["image_id"], target["file_name"]) == (7, "a.png")


def test_sparse_category_ids_become_contiguous_labels(write):
    dataset = CocoDataset(*write())
    assert dataset.category_labels == {5: 1, 90: 2}
    assert dataset.class_names == {1: "airplane", 2: "brush"}
    assert dataset.num_classes == 3
    given = CocoDataset(*write(), category_labels={5: 5, 90: 90})
    assert given[0][1]["labels"].tolist() == [5, 90]
    assert given.num_classes == 91


def test_an_unused_category_0_is_a_placeholder(write):
    """Roboflow writes the name of the project as category 0."""

    def placeholder(content):
        content["categories"].append({"id": 0, "name": "project"})

    def used(content):
        placeholder(content)
        content["annotations"][0]["category_id"] = 0

    dataset = CocoDataset(*write(placeholder))
    assert dataset.category_labels == {5: 1, 90: 2}
    assert dataset.class_names == {1: "airplane", 2: "brush"}
    assert CocoDataset(*write(used)).category_labels == {0: 1, 5: 2, 90: 3}


def test_objects_of_categories_without_a_label_are_dropped(write):
    labels = {"airplane": 7}
    dataset = CocoDataset(
        *write(),
        category_labels=lambda names: {id: labels[n] for id, n in names.items() if n in labels},
    )
    assert dataset.category_labels == {5: 7}
    assert dataset[0][1]["labels"].tolist() == [7]


def test_crowds_as_objects(write):
    def change(content):
        content["annotations"][0]["iscrowd"] = 1

    dataset = CocoDataset(*write(change))
    assert dataset.crowd_only == ["airplane"]
    dataset = CocoDataset(*write(change), crowds_as_objects=True)
    assert dataset.crowd_only == []
    assert dataset[0][1]["annotation_ids"].tolist() == [1, 2]
    assert dataset[0][1]["iscrowd"].tolist() == [0, 0]


def test_images_without_annotations_are_kept(write):
    dataset = CocoDataset(*write())
    assert len(dataset) == 2
    target = dataset[1][1]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, *SIZE)
    assert target["labels"].shape == (0,)


def test_crowds_are_dropped_unless_keep_crowd(write):
    def change(content):
        counts = [0, 20 * 30]
        segmentation = {"size": list(SIZE), "counts": counts}
        content["annotations"].append(annotation(3, iscrowd=1, segmentation=segmentation))

    assert CocoDataset(*write(change))[0][1]["annotation_ids"].tolist() == [1, 2]
    target = CocoDataset(*write(change), keep_crowd=True)[0][1]
    assert target["iscrowd"].tolist() == [0, 0, 1]
    assert target["masks"][2].all()


def test_every_form_of_segmentation(write):
    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 2:12] = 1
    two = [[2, 3, 7, 3, 7, 9, 2, 9], [7, 3, 12, 3, 12, 9, 7, 9]]
    uncompressed = {"size": list(SIZE), "counts": [43, *[6, 14] * 9, 6, 600 - 43 - 20 * 9 - 6]}
    forms = [SQUARE, two, rle.encode(mask), uncompressed]

    def change(content):
        content["annotations"] = [
            annotation(i, segmentation=form) for i, form in enumerate(forms, 1)
        ]

    masks = CocoDataset(*write(change))[0][1]["masks"]
    assert all(torch.equal(drawn, torch.from_numpy(mask)) for drawn in masks)


def test_boxes_are_clipped_and_empty_ones_dropped_with_a_warning(write):
    def change(content):
        content["annotations"] = [
            annotation(1, bbox=[-5, -5, 10, 10]),
            annotation(2, bbox=[5, 5, 0, 3]),
            annotation(3, bbox=[50, 5, 4, 3]),
        ]

    with pytest.warns(UserWarning, match=r"gt\.json: dropped 2 annotations .*: 2, 3"):
        dataset = CocoDataset(*write(change))
    assert dataset[0][1]["boxes"].tolist() == [[0, 0, 5, 5]]


def test_pickled_copy_reads_the_same(write):
    dataset = CocoDataset(*write())
    restored = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(restored[0][1]["masks"], dataset[0][1]["masks"])


@pytest.mark.parametrize(
    ("key", "fields", "message"),
    [
        ("images", {"id": 3}, "image id 3 is used twice"),
        ("images", {"height": None}, "image id 7 "),
        ("annotations", {"image_id": 99}, "annotation 1: unknown image id 99"),
        ("annotations", {"category_id": 99}, "annotation 1: unknown category id 99"),
        ("annotations", {"category_id": 0}, "annotation 1: unknown category id 0"),
        ("annotations", {"category_id": [5]}, "annotation 1: "),
        (
            "annotations",
            {"bbox": [1, 2, 3]},
            r"annotation 1: bbox is not four numbers: \[1, 2, 3\]",
        ),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, "annotation 1: bbox is not finite"),
        ("annotations", {"bbox": None}, "annotation 1: bbox is not four numbers: None"),
        ("annotations", {"area": "big"}, "annotation 1: area is not a number of pixels: 'big'"),
        ("annotations", {"iscrowd": "no"}, "annotation 1: iscrowd is neither 0 nor 1: 'no'"),
        ("annotations", {"id": 2**70}, "annotation 1180591620717411303424: id is not a whole"),
        ("images", {"height": -3}, r"image id 7 .* -3 x \d+ pixels"),
        ("categories", {"id": "one"}, "categories: id is not a whole number: 'one'"),
    ],
)
def test_bad_entries_are_named_at_once(write, key, fields, message):
    path, folder = write(lambda content: content[key][0].update(fields))
    with pytest.raises(ValueError, match=rf"gt\.json: {message}"):
        CocoDataset(path, folder)


@pytest.mark.parametrize(
    ("key", "field", "message"),
    [
        ("images", "width", r"image id 7 \(a\.png\): .*'width'"),
        ("annotations", "bbox", "annotation 1: no 'bbox'"),
        ("annotations", "category_id", "annotation 1: no 'category_id'"),
    ],
)
def test_missing_fields_are_named_at_once(write, key, field, message):
    path, folder = write(lambda content: content[key][0].pop(field))
    with pytest.raises(ValueError, match=rf"gt\.json: {message}"):
        CocoDataset(path, folder)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("masks/1.png", "neither polygons nor RLE"),
        ([[1, 2, 3, 4]], "at least 3 points"),
        ({"size": [30, 20], "counts": [600]}, "mask is 30 x 20 .*, its image 20 x 30"),
    ],
)
def test_bad_masks_are_named_when_read(write, segmentation, message):
    path, folder = write(
        lambda content: content["annotations"][1].update(segmentation=segmentation)
    )
    dataset = CocoDataset(path, folder)
    with pytest.raises(ValueError, match=rf"gt\.json: annotation 2: .*{message}"):
        dataset[0]


@pytest.mark.parametrize("nothing", ["missing", None, [], [[]]])
def test_objects_with_a_box_only_have_no_mask(write, nothing):
    def change(content):
        if nothing == "missing":
            del content["annotations"][1]["segmentation"]
        else:
            content["annotations"][1]["segmentation"] = nothing

    target = CocoDataset(*write(change))[0][1]
    row = target["annotation_ids"].tolist().index(2)
    assert target["has_mask"].tolist().index(False) == row
    assert not target["masks"][row].any() and target["masks"].flatten(1).any(1).sum() >= 1
    assert "has_mask" not in CocoDataset(*write())[0][1]


def test_missing_and_mismatched_images(write):
    path, folder = write()
    dataset = CocoDataset(path, folder)
    Image.new("RGB", (4, 5)).save(folder / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: image id 7 is 5 x 4 .* but 20 x 30 in .*gt"):
        dataset[0]
    (folder / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such image"):
        dataset[0]


def test_size_of_an_image_rotated_by_exif_is_explained(write):
    path, folder = write()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(folder / "a.png", exif=exif)
    with pytest.raises(ValueError, match="it fits with --no-exif"):
        CocoDataset(path, folder)[0]
    assert CocoDataset(path, folder, apply_exif=False)[0][0].shape == (3, *SIZE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not COCO annotations but a list"),
        ('{"images": []}', "'categories' is not a list"),
        ('{"images": [], "annotations": 3}', "'annotations' is not a list"),
        (
            '{"images": [3], "annotations": [], "categories": []}',
            "'images' is not a list of objects",
        ),
        ('{"images": [], "annotations": [], "categories": []}', "has no image"),
    ],
)
def test_files_that_are_not_coco(tmp_path, text, message):
    (tmp_path / "gt.json").write_text(text)
    with pytest.raises(ValueError, match=rf"gt\.json: .*{message}"):
        CocoDataset(tmp_path / "gt.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        CocoDataset(tmp_path / "gone.json", tmp_path)


def test_segmentations_are_packed_while_reading(write):
    segmentation = read_coco_json(write()[0])["annotations"][0]["segmentation"]
    assert segmentation.unpack() == SQUARE


def test_failed_write_leaves_the_previous_file(tmp_path):
    write_json(tmp_path / "results.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "results.json", [2, object()])
    assert json.loads((tmp_path / "results.json").read_text()) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_coco(data_root, split):
    folder = data_root / "coco_tiny"
    file = folder / "annotations" / f"instances_{split}2017.json"
    dataset = CocoDataset(file, folder / f"{split}2017")
    annotations = json.loads(file.read_text())["annotations"]
    crowds = sum(a["iscrowd"] for a in annotations)
    targets = [dataset[index][1] for index in range(len(dataset))]
    assert crowds > 0
    assert sum(len(t["boxes"]) for t in targets) == len(annotations) - crowds
    assert min(len(t["boxes"]) for t in targets) == 0
    assert all(target["masks"].flatten(1).any(1).all() for target in targets)
    labels = torch.cat([target["labels"] for target in targets])
    assert labels.min() >= 1
    assert labels.max() <= 80
