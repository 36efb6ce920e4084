"""YOLO: a text file per image with boxes or polygons in fractions of its size, and data.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskrcnn_scratch.data.formats.collect import Collected, image_files

SUBSETS = ("train", "val", "valid", "test")


def read(folder: Path, names_file: Path | None) -> Collected:
    """Reads all subsets of a YOLO data set.

    Args:
        names_file: ``data.yaml`` with the class names; without one classes are called by number.

    Raises:
        ImportError: PyYAML is missing.
        ValueError: a file that cannot be read, naming it and the line.
    """
    names = _names(names_file) if names_file else {}
    data = Collected(folder, folder)
    for index in sorted(names):
        data.category(names[index])
    for path in image_files(folder):
        image = data.add_image(path.relative_to(folder).as_posix())
        labels = label_file(path, folder)
        if labels is None:
            continue
        for line_number, line in enumerate(labels.read_text().splitlines(), 1):
            if line.strip():
                _add(data, image, line, names, f"{labels}, line {line_number}")
    return data


def label_file(image: Path, folder: Path) -> Path | None:
    """The labels of an image: ``images`` in its path replaced by ``labels``, or beside it."""
    parts = list(image.relative_to(folder).with_suffix(".txt").parts)
    candidates = [image.with_suffix(".txt")]
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        candidates.insert(0, folder.joinpath(*parts))
    return next((path for path in candidates if path.is_file()), None)


def _names(path: Path) -> dict[int, str]:
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text())
        names = content["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(index): str(name) for index, name in pairs}
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no class names in it ({error})") from error


def _add(
    data: Collected, image: dict[str, Any], line: str, names: dict[int, str], where: str
) -> None:
    """One line: class, then a box (centre, size) or a polygon, in fractions of the image."""
    try:
        index, *values = (float(word) for word in line.split())
    except ValueError:
        raise ValueError(f"{where}: not numbers: {line[:60]!r}") from None
    name = names.get(int(index), str(int(index)))
    if names and int(index) not in names:
        raise ValueError(f"{where}: class {int(index)}, data.yaml names {sorted(names)}")
    width, height = image["width"], image["height"]
    if any(not -0.01 <= value <= 1.01 for value in values):
        raise ValueError(f"{where}: coordinates must be fractions of the image, in 0-1")
    if len(values) in (4, 5):  # a fifth number is a score
        x, y, w, h = values[:4]
        box = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        data.add_object(image, name, box=box)
    elif len(values) >= 6 and len(values) % 2 == 0:
        polygon = [value * (height if i % 2 else width) for i, value in enumerate(values)]
        data.add_object(image, name, polygons=[polygon])
    else:
        raise ValueError(f"{where}: {len(values)} numbers are neither a box nor a polygon")
