"""Small data sets in the form of each tool, written here and read as COCO annotations."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_scratch.cli import main
from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.formats import read_dataset
from maskrcnn_scratch.data.formats.label_studio import decode_brush
from maskrcnn_scratch.ops import rle
from tests.data.test_untrusted import JUNK, places
from tests.messages import check_one_line

HEIGHT, WIDTH = 40, 60
BOX = (10, 5, 30, 25)  # x1, y1, x2, y2 of the one object
POLYGON = [10, 5, 30, 5, 30, 25, 10, 25]
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[5:25, 10:30] = True


def image(path: Path, array: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8) if array is None else array
    Image.fromarray(pixels).save(path)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def points(polygon: list[int]) -> list[list[int]]:
    return [polygon[i : i + 2] for i in range(0, len(polygon), 2)]


def labelme(folder: Path) -> Path:
    image(folder / "a.png")
    shapes = [{"label": "cat", "points": points(POLYGON), "shape_type": "polygon"}]
    write(
        folder / "a.json",
        {"shapes": shapes, "imagePath": "..\\x\\a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH},
    )
    return folder


def labelme_mask(folder: Path) -> Path:
    image(folder / "a.png")
    buffer = io.BytesIO()
    Image.fromarray(MASK[5:25, 10:30]).save(buffer, "PNG")
    shape = {
        "label": "cat", "points": [[10, 5], [29, 24]], "shape_type": "mask",
        "mask": base64.b64encode(buffer.getvalue()).decode(),
    }  # fmt: skip
    write(folder / "a.json", {"shapes": [shape], "imagePath": "a.png"})
    return folder / "a.json"


def voc(folder: Path, mask: bool = False) -> Path:
    image(folder / "JPEGImages/a.jpg")
    write(
        folder / "Annotations/a.xml",
        f"<annotation><filename>a.jpg</filename><size><width>{WIDTH}</width>"
        f"<height>{HEIGHT}</height><depth>3</depth></size><object><name>cat</name><bndbox>"
        "<xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax></bndbox></object></annotation>",
    )
    if mask:
        image(folder / "SegmentationObject/a.png", MASK.astype(np.uint8))
    return folder


def yolo(folder: Path, polygon: bool = True) -> Path:
    image(folder / "train/images/a.png")
    write(folder / "data.yaml", "names: {0: dog, 1: cat}\ntrain: train/images\n")
    if polygon:
        values = [v / (HEIGHT if i % 2 else WIDTH) for i, v in enumerate(POLYGON)]
    else:
        values = [20 / WIDTH, 15 / HEIGHT, 20 / WIDTH, 20 / HEIGHT]
    write(folder / "train/labels/a.txt", "1 " + " ".join(map(str, values)) + "\n")
    return folder


def penn_fudan(folder: Path) -> Path:
    image(folder / "PNGImages/a.png")
    image(folder / "PedMasks/a_mask.png", MASK.astype(np.uint8) * 3)
    return folder


def one_mask_per_object(folder: Path) -> Path:
    image(folder / "a/images/a.png")
    image(folder / "a/masks/1.png", MASK.astype(np.uint8) * 255)
    return folder


def cvat(folder: Path, shape: str = "polygon") -> Path:
    image(folder / "images/a.png")
    pairs = ";".join(f"{x},{y}" for x, y in points(POLYGON))
    inner = {
        "polygon": f'<polygon label="cat" points="{pairs}"/>',
        "box": '<box label="cat" xtl="10" ytl="5" xbr="30" ybr="25"/>',
        "mask": '<mask label="cat" rle="0,400" left="10" top="5" width="20" height="20"/>',
    }[shape]
    write(
        folder / "annotations.xml",
        "<annotations><meta><task><labels><label><name>dog</name></label><label><name>cat</name>"
        f'</label></labels></task></meta><image id="0" name="a.png" width="{WIDTH}" '
        f'height="{HEIGHT}">{inner}</image></annotations>',
    )
    return folder


def via(folder: Path) -> Path:
    image(folder / "a.png")
    region = {
        "shape_attributes": {
            "name": "polygon",
            "all_points_x": POLYGON[::2],
            "all_points_y": POLYGON[1::2],
        },
        "region_attributes": {"class": "cat", "note": ""},
    }
    write(folder / "via.json", {"a.png123": {"filename": "a.png", "regions": [region]}})
    return folder


def label_studio(folder: Path) -> Path:
    image(folder / "images/a.png")
    percent = [[x * 100 / WIDTH, y * 100 / HEIGHT] for x, y in points(POLYGON)]
    result = {"type": "polygonlabels", "value": {"points": percent, "polygonlabels": ["cat"]}}
    task = {"data": {"image": "/data/upload/1/0af2-a.png"}, "annotations": [{"result": [result]}]}
    write(folder / "export.json", [task])
    return folder


def coco(folder: Path) -> Path:
    image(folder / "images/a.png")
    write(
        folder / "annotations/instances.json",
        {
            "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
            "annotations": [
                {
                    "id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 20],
                    "area": 400, "segmentation": [POLYGON], "iscrowd": 0,
                }
            ],
            "categories": [{"id": 3, "name": "cat"}],
        },
    )  # fmt: skip
    return folder


def supervisely(folder: Path, kind: str = "polygon") -> Path:
    image(folder / "ds/img/a.png")
    write(folder / "meta.json", {"classes": [{"title": "dog"}, {"title": "cat"}], "tags": []})
    buffer = io.BytesIO()
    Image.fromarray(MASK[5:25, 10:30]).save(buffer, "PNG")
    packed = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    shape = {
        "polygon": {"points": {"exterior": points(POLYGON), "interior": []}},
        "rectangle": {"points": {"exterior": [[29, 5], [10, 24]], "interior": []}},
        "bitmap": {"bitmap": {"data": packed, "origin": [10, 5]}},
    }[kind]
    content = {
        "size": {"height": HEIGHT, "width": WIDTH},
        "objects": [{"classTitle": "cat", "geometryType": kind, **shape}],
    }
    write(folder / "ds/ann/a.png.json", content)
    return folder


def fiftyone(folder: Path, mask: bool = True) -> Path:
    image(folder / "data/a.png")
    buffer = io.BytesIO()
    np.save(buffer, np.ones((20, 20), np.uint8))
    packed = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    found = {
        "_cls": "Detection",
        "label": "cat",
        "bounding_box": [10 / WIDTH, 5 / HEIGHT, 20 / WIDTH, 20 / HEIGHT],
    }
    if mask:
        found["mask"] = {"$binary": {"base64": packed, "subType": "00"}}
    sample = {"filepath": "data/a.png", "tags": [], "metadata": None,
              "ground_truth": {"_cls": "Detections", "detections": [found]}}  # fmt: skip
    write(folder / "metadata.json", {"name": "x", "media_type": "image"})
    write(folder / "samples.json", {"samples": [sample]})
    return folder


def coco_of_fiftyone(folder: Path) -> Path:
    coco(folder)
    content = json.loads((folder / "annotations/instances.json").read_text())
    (folder / "annotations/instances.json").rename(folder / "labels.json")
    (folder / "images").rename(folder / "data")
    content["info"] = {"year": "", "version": "", "contributor": "", "date_created": "2024-01-01"}
    content |= {"licenses": None}
    content["categories"][0]["supercategory"] = None
    content["images"][0] |= {"license": None, "coco_url": None}
    write(folder / "labels.json", content)
    return folder / "labels.json"


def coco_of_supervisely(folder: Path) -> Path:
    coco(folder)
    content = json.loads((folder / "annotations/instances.json").read_text())
    content["info"] = {"description": "", "url": "None", "version": 1.0, "year": "2024",
                       "date_created": 0}  # fmt: skip
    content["licenses"] = [{"url": "None", "id": 0, "name": "None"}]
    content["images"][0] |= {"license": "None", "url": "None", "date_captured": "2024-01-01"}
    write(folder / "annotations/instances.json", content)
    return folder


WITH_OUTLINE = {
    "labelme": labelme,
    "labelme mask": labelme_mask,
    "voc with masks": lambda folder: voc(folder, mask=True),
    "yolo polygons": yolo,
    "PennFudan": penn_fudan,
    "one mask per object": one_mask_per_object,
    "cvat polygons": cvat,
    "cvat masks": lambda folder: cvat(folder, "mask"),
    "via": via,
    "label studio": label_studio,
    "coco": coco,
    "supervisely": supervisely,
    "supervisely bitmap": lambda folder: supervisely(folder, "bitmap"),
    "fiftyone": fiftyone,
    "coco of fiftyone": coco_of_fiftyone,
    "coco of supervisely": coco_of_supervisely,
}
BOXES_ONLY = {
    "voc": voc,
    "yolo boxes": lambda folder: yolo(folder, polygon=False),
    "cvat boxes": lambda folder: cvat(folder, "box"),
    "supervisely rectangle": lambda folder: supervisely(folder, "rectangle"),
    "fiftyone boxes": lambda folder: fiftyone(folder, mask=False),
}
ALL = {**WITH_OUTLINE, **BOXES_ONLY}


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


def test_holes_of_supervisely(tmp_path: Path) -> None:
    supervisely(tmp_path)
    file = tmp_path / "ds/ann/a.png.json"
    content = json.loads(file.read_text())
    content["objects"][0]["points"]["interior"] = [points([15, 10, 25, 10, 25, 20, 15, 20])]
    content["objects"].append({"classTitle": "dog", "geometryType": "line", "points": {}})
    write(file, content)
    with pytest.warns(UserWarning, match="skipped 1 figures of type line"):
        (annotation,) = read_dataset(tmp_path).content["annotations"]
    mask = MASK.copy()
    mask[10:20, 15:25] = False
    assert np.array_equal(rle.decode(annotation["segmentation"].unpack()), mask)


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


def test_shapes_that_have_no_area_are_counted(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    shapes = [
        {"label": "cat", "points": [[1, 1]], "shape_type": "point"},
        {"label": "cat", "points": points(POLYGON), "shape_type": "polygon", "group_id": 1},
        {"label": "cat", "points": [[40, 5], [50, 5], [50, 15]], "group_id": 1},
    ]
    write(tmp_path / "a.json", {"shapes": shapes, "imagePath": "a.png"})
    with pytest.warns(UserWarning, match="skipped 1 shapes of type point"):
        content, *_ = read_dataset(tmp_path)
    (annotation,) = content["annotations"]
    assert len(annotation["segmentation"].unpack()) == 2  # one object of two parts


def brush(mask: np.ndarray) -> list[int]:
    """One run of literal words, as Label Studio's encoder may write it."""
    values = np.repeat(mask.astype(np.uint8).ravel() * 255, 4)
    bits = [f"{len(values):032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in (3, 4, 8, 16))]
    for first in range(0, len(values), 2**16):
        part = values[first : first + 2**16]
        bits += ["0", "11", f"{len(part) - 1:016b}", *(f"{value:08b}" for value in part)]
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[i : i + 8], 2) for i in range(0, len(stream), 8)]


def test_brush_strokes_of_label_studio() -> None:
    decoded = decode_brush(brush(MASK), HEIGHT, WIDTH, Path("x"))
    assert np.array_equal(decoded, MASK)
    repeated = f"{HEIGHT * WIDTH * 4:032b}{7:05b}" + "1111" * 4 + "1" + "11"
    repeated += f"{HEIGHT * WIDTH * 4 - 1:016b}{255:08b}"
    repeated += "0" * (-len(repeated) % 8)
    numbers = [int(repeated[i : i + 8], 2) for i in range(0, len(repeated), 8)]
    assert decode_brush(numbers, HEIGHT, WIDTH, Path("x")).all()
    with pytest.raises(ValueError, match="ends early"):
        decode_brush(numbers[:8], HEIGHT, WIDTH, Path("x"))
    with pytest.raises(ValueError, match="another size"):
        decode_brush(numbers, HEIGHT, WIDTH + 1, Path("x"))
