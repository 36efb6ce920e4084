"""Names of the files, and what stands in them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools import mask as pycoco

from maskrcnn_scratch.evaluation.model_results import encode_masks
from maskrcnn_scratch.inference.image_jobs import ImageJob, image_ids
from maskrcnn_scratch.inference.writers import ResultWriter, plan_outputs

OUT = Path("out")
CAT = ImageJob(Path("in/cat.jpg"), "cat.jpg", 5)
RESULT = {
    "boxes": torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 0.0, 3.0, 2.5]]),
    "labels": torch.tensor([1, 2]),
    "scores": torch.tensor([0.75, 0.5]),
    "masks": torch.rand(2, 1, 7, 9, generator=torch.Generator().manual_seed(0)),
}


def names(files, formats=("png",)):
    jobs = [ImageJob(Path(file), file, 1) for file in files]
    planned = plan_outputs([job.output_name for job in jobs], OUT, formats)
    return [[path.relative_to(OUT).as_posix() for path in paths.values()] for paths in planned]


def test_names_come_from_the_images():
    assert names(["a/1.jpg", "b/2.tif"]) == [["a/1.png"], ["b/2.png"]]
    assert names(["../1.jpg", "a\\b\\2.tif", "/etc/3.png"]) == [
        ["1.png"],
        ["a/b/2.png"],
        ["etc/3.png"],
    ]
    everything = names(["1.jpg"], ("png", "json", "rle", "coco"))
    assert everything == [["1.png", "1.json", "1.rle.json", "coco_results.json"]]


@pytest.mark.parametrize(
    "files",
    [
        ["a/1.jpg", "b/1.jpg", "a/1.png", "1-2.png"],
        ["1-2.png", "1.jpg", "1.png", "1-2-2.gif"],
        ["x.rle.png", "x.png", "X.jpg", "coco_results.jpg"],
    ],
)
def test_names_never_collide(files):
    formats = ("png", "json", "rle", "coco")
    own = [name.lower() for image in names(files, formats) for name in image[:3]]
    assert len(set(own)) == 3 * len(files) and "coco_results.json" not in own


def test_image_ids():
    assert image_ids([Path("000000397133.jpg"), Path("x/42.png")]) == [397133, 42]
    assert image_ids([Path("1.jpg"), Path("x/1.png")]) == [1, 2]
    assert image_ids([Path("7.jpg"), Path("cat.png")]) == [1, 2]


@pytest.fixture
def written(tmp_path):
    """The contents of every format for one image with two detections."""
    paths = plan_outputs(["cat"], tmp_path / "new", ("png", "json", "rle", "coco"))[0]
    writer = ResultWriter({1: "cat"}, {17: 1, 30: 2})
    summary = writer.write(CAT, torch.zeros(3, 7, 9), RESULT, paths)
    writer.write_coco(paths["coco"])
    contents = {kind: json.loads(path.read_text()) for kind, path in paths.items() if kind != "png"}
    with Image.open(paths["png"]) as picture:
        picture.load()
    return contents | {"summary": summary, "files": sorted(p.name for p in tmp_path.glob("*/*"))}


def test_json(written):
    assert written["json"] == {
        "file": str(Path("in/cat.jpg")),
        "file_name": "cat.jpg",
        "image_id": 5,
        "height": 7,
        "width": 9,
        "detections": [
            {"label": 1, "category": "cat", "score": 0.75, "box": [1.0, 2.0, 5.0, 6.0]},
            {"label": 2, "category": "label 2", "score": 0.5, "box": [0.0, 0.0, 3.0, 2.5]},
        ],
    }
    assert written["summary"] == "1 cat, 1 label 2"


def test_masks_are_what_pycocotools_reads(written):
    for kind, entries in (("rle", written["rle"]["detections"]), ("coco", written["coco"])):
        for entry, mask in zip(entries, RESULT["masks"], strict=True):
            decoded = pycoco.decode(entry["segmentation"])
            assert torch.equal(torch.from_numpy(decoded) != 0, mask[0] >= 0.5), kind
    for detection in written["rle"]["detections"]:
        del detection["segmentation"]
    assert written["rle"] == written["json"]


def test_coco(written):
    for entry in written["coco"]:
        del entry["segmentation"]
    assert written["coco"] == [
        {"image_id": 5, "file_name": "cat.jpg", "category_id": 17, "bbox": [1.0, 2.0, 4.0, 4.0]}
        | {"score": 0.75},
        {"image_id": 5, "file_name": "cat.jpg", "category_id": 30, "bbox": [0.0, 0.0, 3.0, 2.5]}
        | {"score": 0.5},
    ]


def test_nothing_else_is_left_behind(written):
    assert written["files"] == ["cat.json", "cat.png", "cat.rle.json", "coco_results.json"]


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    paths = plan_outputs(["cat"], tmp_path, ("png",))[0]
    writer = ResultWriter({}, {})
    writer.write(CAT, torch.zeros(3, 7, 9), RESULT, paths)
    before = paths["png"].read_bytes()

    def full_disk(picture, stream, **options):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match=r"cat\.png: could not be written \(No space left"):
        writer.write(CAT, torch.ones(3, 7, 9), RESULT, paths)
    assert paths["png"].read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["cat.png"]


def test_models_without_masks(tmp_path):
    boxes = {key: value for key, value in RESULT.items() if key != "masks"}
    paths = plan_outputs(["a"], tmp_path, ("png", "json", "coco"))[0]
    writer = ResultWriter({}, {1: 1, 2: 2})
    writer.write(CAT, torch.zeros(3, 7, 9), boxes, paths)
    assert len(writer.coco_results) == 2 and "segmentation" not in writer.coco_results[0]


def test_masks_may_be_rle(tmp_path):
    paths = plan_outputs(["a"], tmp_path, ("png", "jpg", "json", "rle", "coco"))[0]
    written = []
    for result in (RESULT, encode_masks(RESULT)):
        writer = ResultWriter({}, {1: 1, 2: 2})
        writer.write(CAT, torch.zeros(3, 7, 9), result, paths)
        files = [paths[kind].read_bytes() for kind in ("png", "jpg", "json", "rle")]
        written.append((files, writer.coco_results))
    assert written[0] == written[1]
    with Image.open(paths["jpg"]) as picture:
        assert picture.format == "JPEG"


def test_pages_have_names_and_numbers(tmp_path):
    job = ImageJob(Path("scan.tif"), "scan.tif", 1, page=1)
    assert job.output_name == "scan-page2"
    paths = plan_outputs([job.output_name], tmp_path, ("json",))[0]
    ResultWriter({}, {}).write(job, torch.zeros(3, 7, 9), RESULT, paths)
    assert json.loads(paths["json"].read_text())["page"] == 2
