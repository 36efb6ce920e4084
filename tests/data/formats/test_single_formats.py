"""What one tool's form has and others have not: parts of an object, holes, brush strokes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_scratch.data.formats import read_dataset
from maskrcnn_scratch.data.formats.label_studio import decode_brush
from maskrcnn_scratch.ops import rle
from tests.data.formats.datasets import (
    HEIGHT,
    MASK,
    POLYGON,
    WIDTH,
    image,
    points,
    supervisely,
    write,
)


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
