"""Scores against the published fixtures and pycocotools."""

import io
import json
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_scratch.evaluation.coco_ap import METRICS, score
from maskrcnn_scratch.ops import rle

FIXTURES = {
    "cocoapi_bbox": (
        "cocoapi/instances_val2014_100",
        "cocoapi/instances_val2014_fakebbox100_results",
    ),
    "cocoapi_segm": (
        "cocoapi/instances_val2014_100",
        "cocoapi/instances_val2014_fakesegm100_results",
    ),
    "cocoapi_segm_results_as_bbox": (
        "cocoapi/instances_val2014_100",
        "cocoapi/instances_val2014_fakesegm100_results",
    ),
    "d2_bbox": ("d2/gt_annotations", "d2/detections"),
    "d2_segm": ("d2/gt_annotations", "d2/detections"),
    "small_bbox": ("small/gt_dataset", "small/dt_dataset"),
    "small_segm": ("small/gt_dataset", "small/dt_dataset"),
    "ignore_bbox_all": ("small/gt_ignore_test_intid", "small/dt_ignore_test"),
    "ignore_bbox_minscore0.1": ("small/gt_ignore_test_intid", "small/dt_ignore_test"),
}


@pytest.mark.parametrize("case", FIXTURES)
def test_twelve_numbers_of_every_fixture(data_root, case):
    folder = data_root / "coco_eval"
    annotations, results = (folder / f"{name}.json" for name in FIXTURES[case])
    iou_type = "segm" if case.endswith("_segm") else "bbox"
    min_score = 0.1 if case.endswith("minscore0.1") else 0.0
    found = score(annotations, results, iou_type, min_score=min_score)
    expected = json.loads((folder / "expected.json").read_text())
    assert expected["order"].split() == list(METRICS)
    assert found.stats == pytest.approx(expected["stats"][case], abs=1e-6)


def test_every_fixture_is_tested(data_root):
    expected = json.loads((data_root / "coco_eval" / "expected.json").read_text())
    assert set(FIXTURES) == set(expected["stats"])


def random_mask(rng, size):
    mask = np.zeros(size, bool)
    height, width = rng.integers(4, 60, 2)
    y, x = rng.integers(0, size[0] - 3), rng.integers(0, size[1] - 3)
    mask[y : y + height, x : x + width] = True
    return mask & (rng.random(size) < 0.95)


def shifted(mask, rng):
    return np.roll(mask, rng.integers(-3, 4, 2), (0, 1))


def random_data(seed, images=8, categories=(3, 7, 20)):
    """Ground truth with crowds and empty images, and results that partly match it."""
    rng = np.random.default_rng(seed)
    size = (90, 120)
    annotations, results = [], []
    for image_id in range(1, images):
        for _ in range(rng.integers(0, 7)):
            mask = random_mask(rng, size)
            category = int(rng.choice(categories))
            encoded = rle.encode(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "iscrowd": int(rng.random() < 0.3),
                    "segmentation": encoded,
                    "bbox": rle.bounding_box(encoded),
                    "area": rle.area(encoded),
                }
            )
            for _ in range(rng.integers(0, 3)):
                hit = rng.random() < 0.9
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": category if hit else int(rng.choice(categories)),
                        "segmentation": rle.encode(shifted(mask, rng)),
                        "score": float(rng.random()),
                    }
                )
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]}
            for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
    }
    return truth, results


def pycocotools_eval(truth, results, iou_type, image_ids=None):
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(results))), iou_type)
        if image_ids:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # in pycocotools
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(5))
def test_random_data_as_in_pycocotools(seed, iou_type):
    truth, results = random_data(seed)
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    expected = pycocotools_eval(truth, results, iou_type)
    found = score(truth, results, iou_type)
    assert found.stats == pytest.approx(expected.stats.tolist(), abs=1e-12)
    assert found.metrics[f"{iou_type}/AP"] == found.stats[0]
    precision = expected.eval["precision"][..., 0, 2]
    for k, category in enumerate(truth["categories"]):
        ap = precision[:, :, k]
        assert found.per_class[category["name"]]["AP"] == pytest.approx(ap[ap > -1].mean())


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_part_of_the_images():
    truth, results = random_data(0)
    expected = pycocotools_eval(truth, results, "segm", [1, 2, 3])
    assert score(truth, results, image_ids=[3, 1, 2]).stats == pytest.approx(
        expected.stats.tolist()
    )


def test_perfect_results_and_none():
    truth, _ = random_data(1)
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    perfect = [{**annotation, "score": 0.5} for annotation in truth["annotations"]]
    assert score(truth, perfect).stats[0] == pytest.approx(1)
    assert score(truth, []).stats[0] == 0
    assert score(truth, perfect, min_score=0.6).stats[0] == 0


def test_more_than_100_detections_count_if_there_are_more_objects():
    size = (200, 200)
    masks = [np.zeros(size, bool) for _ in range(150)]
    for index, mask in enumerate(masks):
        y, x = divmod(index, 15)
        mask[y * 12 : y * 12 + 10, x * 12 : x * 12 + 10] = True
    annotations = []
    for index, encoded in enumerate(map(rle.encode, masks), 1):
        annotations.append(
            {
                "id": index,
                "image_id": 1,
                "category_id": 1,
                "segmentation": encoded,
                "bbox": rle.bounding_box(encoded),
                "area": 100,
                "iscrowd": 0,
            }
        )
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 200, "width": 200}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}],
    }
    results = [{**annotation, "score": 0.9} for annotation in annotations]
    assert score(truth, results, max_detections=100).stats[0] < 0.7
    with pytest.warns(UserWarning, match="an image has 150 objects of a category: 150 detections"):
        assert score(truth, results).stats[0] == pytest.approx(1)
    few = truth | {"annotations": annotations[:100]}
    assert score(few, results).stats == score(few, results, max_detections=100).stats
    assert score(truth, results, max_detections=300).stats[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="over 10, got 5"):
        score(truth, results, max_detections=5)


def test_tide_and_confusion_matrix_on_request():
    truth, _ = random_data(2)
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    swapped = {3: 7, 7: 3, 20: 20}
    results = [
        {**a, "category_id": swapped[a["category_id"]], "score": 0.9} for a in truth["annotations"]
    ]
    found = score(truth, results, tide=True, confusion_matrix=True)
    count = {c: sum(a["category_id"] == c for a in truth["annotations"]) for c in (3, 7, 20)}
    assert found.tide["counts"]["Cls"] == count[3] + count[7]
    assert found.confusion_matrix["names"] == ["class 3", "class 7", "class 20", "background"]
    matrix = np.array(found.confusion_matrix["matrix"])
    assert (matrix[0, 1], matrix[1, 0], matrix[2, 2]) == (count[3], count[7], count[20])
    assert matrix.sum() == len(results)
    assert score(truth, results).tide is None


GOOD = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"\(image id 99\): the annotations have no image with id 99"),
        ({"category_id": 99}, "unknown category id 99"),
        ({"score": float("nan")}, "the score is NaN"),
        ({"score": None}, "float"),
        ({"bbox": [1, 2, 3]}, "bbox is not four numbers"),
        ({"bbox": [1, 2, 3, float("inf")]}, "bbox is not finite"),
    ],
)
def test_bad_results_are_named(change, message):
    truth, _ = random_data(0)
    with pytest.raises(ValueError, match=f"results: result 1 .*{message}"):
        score(truth, [GOOD, GOOD | change], "bbox")


def test_results_without_what_is_scored():
    truth, _ = random_data(0)
    with pytest.raises(ValueError, match="no result has a 'segmentation'"):
        score(truth, [GOOD], "segm")
    with pytest.raises(ValueError, match="result 0: no 'image_id'"):
        score(truth, [{"score": 1, "category_id": 3}], "segm")
    small = {**GOOD, "segmentation": {"size": [9, 9], "counts": [81]}}
    with pytest.raises(ValueError, match=r"mask is 9 x 9 .*, its image 90 x 120"):
        score(truth, [small], "segm")


def test_missing_hotcoco_says_which_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(ImportError, match=r"pip install 'maskrcnn_scratch\[evaluate\]'"):
        score({}, [])


def test_bad_files_are_named(tmp_path):
    truth, _ = random_data(0)
    with pytest.raises(FileNotFoundError, match=r"gone\.json: no such file"):
        score(tmp_path / "gone.json", [])
    for text in ("{}", "[1", '{"images": 3}'):
        (tmp_path / "gt.json").write_text(text)
        with pytest.raises(ValueError, match=r"gt\.json: not (COCO annotations|JSON)"):
            score(tmp_path / "gt.json", [])
    with pytest.raises(FileNotFoundError, match=r"gone\.json: no such file"):
        score(truth, tmp_path / "gone.json")
    (tmp_path / "dt.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"dt\.json: COCO results are a list, not a dict"):
        score(truth, tmp_path / "dt.json")


def test_objects_without_a_mask_count_for_boxes_only():
    corners = [5, 5, 25, 5, 25, 25, 5, 25], [30, 30, 40, 30, 40, 40, 30, 40]
    boxes = [5, 5, 20, 20], [30, 30, 10, 10]
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 50}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": 1, "bbox": boxes[n], "iscrowd": 0,
             "segmentation": [corners[n]] if n else []}
            for n in range(2)
        ],
    }  # fmt: skip
    found = [
        {"image_id": 1, "category_id": 1, "score": 0.9 - n / 10, "bbox": boxes[n],
         "segmentation": [corners[n]]}
        for n in range(2)
    ]  # fmt: skip
    for kept in (found, found[1:]):
        assert score(truth, kept, "segm").stats[0] == pytest.approx(1)
    assert score(truth, found[1:], "bbox").stats[0] == pytest.approx(0.5, abs=0.01)
    truth["annotations"] = truth["annotations"][:1]
    assert score(truth, found, "segm").stats[0] == -1
    assert score(truth, found, "bbox").stats[0] == pytest.approx(1)
