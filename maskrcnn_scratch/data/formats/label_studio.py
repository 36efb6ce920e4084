"""Label Studio's JSON export: a list of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.data.formats.collect import Collected, base_name, circle, image_files

SHAPES = ("polygonlabels", "rectanglelabels", "ellipselabels", "brushlabels")


def is_label_studio(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(task, dict) and "data" in task and "annotations" in task for task in content[:20]
    )


def read(path: Path) -> Collected:
    """Reads the first annotation of each task that was not cancelled.

    Raises:
        FileNotFoundError, ValueError: an image that cannot be found or read, naming it.
    """
    by_name = {file.name: file for file in image_files(path.parent, strict=False)}
    data = Collected(path, path.parent)
    for task in read_json(path):
        value = next((v for v in task["data"].values() if isinstance(v, str)), "")
        name = base_name(value)
        file = by_name.get(name) or by_name.get(name.partition("-")[2])  # "1a2b3c4d-photo.jpg"
        if file is None:
            raise FileNotFoundError(f"{path}: image {name} was not found beside it")
        image = data.add_image(file.relative_to(path.parent).as_posix())
        kept = [one for one in task["annotations"] if not one.get("was_cancelled")]
        for result in kept[0]["result"] if kept else []:
            kind = result.get("type")
            if kind not in SHAPES:
                data.skip(f"results of type {kind}")
                continue
            value = result["value"]
            label = str((value.get(kind) or ["object"])[0])
            _add(data, image, label, kind, value, path)
    return data


def _add(
    data: Collected, image: dict[str, Any], label: str, kind: str, value: Any, path: Path
) -> None:
    """One shape; its coordinates are percentages of the image."""
    width, height = image["width"] / 100, image["height"] / 100
    if kind == "brushlabels":
        mask = decode_brush(value["rle"], image["height"], image["width"], path)
        data.add_object(image, label, mask=mask)
    elif kind == "polygonlabels":
        polygon = [value for x, y in value["points"] for value in (x * width, y * height)]
        data.add_object(image, label, polygons=[polygon])
    elif kind == "ellipselabels":
        ellipse = circle(
            value["x"] * width, value["y"] * height,
            value["radiusX"] * width, value["radiusY"] * height,
        )  # fmt: skip
        data.add_object(image, label, polygons=[ellipse])
    elif value.get("rotation"):
        data.skip("rotated rectangles")
    else:
        x, y = value["x"] * width, value["y"] * height
        box = (x, y, x + value["width"] * width, y + value["height"] * height)
        data.add_object(image, label, box=box)


def decode_brush(numbers: list[int], height: int, width: int, path: Path) -> np.ndarray:
    """Label Studio's brush strokes (the format of ``@thi.ng/rle-pack``) as bool ``[H, W]``.

    A bit stream: 32 bits length, 5 bits word size - 1, four times 4 bits run size - 1; then runs:
    one bit whether it repeats one word, two bits which run size, the run length - 1, and its word
    or words. Four channels per pixel; the last is the mask.

    Raises:
        ValueError: the stream ends early or is of another size than the image.
    """
    bits = np.unpackbits(np.asarray(numbers, np.uint8))
    position = 0

    def take(count: int) -> int:
        nonlocal position
        if position + count > len(bits):
            raise ValueError(f"{path}: a brush mask that ends early")
        padded = np.pad(bits[position : position + count], (-count % 8, 0))
        position += count
        return int.from_bytes(np.packbits(padded).tobytes(), "big")

    length, word_size = take(32), take(5) + 1
    run_sizes = [take(4) + 1 for _ in range(4)]
    if length != height * width * 4:
        raise ValueError(f"{path}: a brush mask of another size than its image {height} x {width}")
    values = np.zeros(length, np.uint8)
    done = 0
    while done < length:
        repeats, run_size = take(1), run_sizes[take(2)]
        end = done + 1 + take(run_size)
        if repeats:
            values[done:end] = take(word_size)
        else:
            for index in range(done, min(end, length)):
                values[index] = take(word_size)
        done = end
    return values.reshape(height, width, 4)[..., 3] > 0
