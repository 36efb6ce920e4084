"""One image with one object in the form of each tool, written into a folder."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
