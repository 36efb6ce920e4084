"""Which format a data set has, by its content."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from maskrcnn_scratch.data.coco_json import coco_content, read_coco_json, read_json
from maskrcnn_scratch.data.formats import (
    cvat,
    fiftyone,
    instance_masks,
    label_studio,
    labelme,
    pascal_voc,
    supervisely,
    via,
    yolo,
)
from maskrcnn_scratch.data.formats.collect import Collected, image_files
from maskrcnn_scratch.data.formats.xml import read_xml
from maskrcnn_scratch.data.image_folder import find_image_folder
from maskrcnn_scratch.data.walk import files_below
from maskrcnn_scratch.plain_values import shown

FORMATS = (
    "COCO, labelme, Pascal VOC, YOLO, CVAT XML, VIA, Label Studio, Supervisely, FiftyOne, "
    "folders of PNG instance masks"
)


LONGEST_MESSAGE = 1000  # characters


class Source(NamedTuple):
    """A data set as COCO annotations."""

    content: dict[str, Any]
    """As ``read_coco_json`` returns it."""
    image_folder: Path
    coco_file: Path | None
    """The annotation file, if it is COCO's format."""


def read_dataset(source: Path) -> Source:
    """Reads a data set of any of ``FORMATS``.

    Args:
        source: an annotation file, or the folder of the data set.

    Raises:
        FileNotFoundError: there is no such file or folder, or an image is missing.
        ValueError: no format was recognised, or a file cannot be read; the message names it.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if source.is_file() and source.suffix.lower() == ".json":
        with suppress(ValueError):  # another format; or the message below says what is wrong
            return _coco_source(source)
    try:
        data = _read_file(source) if source.is_file() else _read_folder(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(_one_line(source, error)) from error
    except (ValueError, OSError) as error:
        raise ValueError(_one_line(source, error)) from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        text = f"a value is missing or odd ({type(error).__name__}: {error})"
        raise ValueError(_one_line(source, text)) from error
    if isinstance(data, Path):
        return _coco_source(data)
    return Source(coco_content(data.content(), str(source)), data.folder, None)


def _one_line(source: Path, error: object) -> str:
    """A message that names the source, in one printable line."""
    text = str(error)
    if not text.isprintable() or len(text) > LONGEST_MESSAGE:
        text = shown(text, LONGEST_MESSAGE)
    return text if str(source) in text else f"{source}: {text}"


def _coco_source(file: Path) -> Source:
    return Source(read_coco_json(file), find_image_folder(file), file)


def _read_file(path: Path) -> Collected | Path:
    """The data set of one annotation file; a path stands for COCO's format."""
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, dict) and {"images", "categories"} <= content.keys():
            return path
        if labelme.is_labelme(content):
            return labelme.read(path.parent, [path])
        if via.is_via(content):
            return via.read(path)
        if label_studio.is_label_studio(content):
            return label_studio.read(path)
        if fiftyone.is_fiftyone(content):
            return fiftyone.read(path)
    elif path.suffix.lower() == ".xml":
        tag = read_xml(path).tag
        if tag == "annotations":
            return cvat.read(path)
        if tag == "annotation":
            return pascal_voc.read(path.parent, [path])
    elif path.suffix.lower() in (".yaml", ".yml"):
        return yolo.read(path.parent, path)
    raise ValueError(f"{path}: of none of the formats that are read ({FORMATS})")


def _read_folder(folder: Path) -> Collected | Path:
    yaml_files = sorted((*folder.glob("*.yaml"), *folder.glob("*.yml")))
    if yaml_files:
        return yolo.read(folder, yaml_files[0])
    xml_files = sorted(path for path in files_below(folder) if path.suffix == ".xml")
    for path in xml_files:
        if path.name == "annotations.xml":
            return cvat.read(path)
    if xml_files:
        if read_xml(xml_files[0]).tag == "annotation":
            return pascal_voc.read(folder, xml_files)
        return _read_file(xml_files[0])
    if files := supervisely.annotation_files(folder):
        return supervisely.read(folder, files)
    if (folder / "samples.json").is_file():
        return _read_file(folder / "samples.json")
    json_files = sorted(path for path in files_below(folder) if path.suffix == ".json")
    if json_files:
        contents = {path: read_json(path) for path in json_files[:20]}
        if any(map(labelme.is_labelme, contents.values())):
            files = [path for path in json_files if labelme.is_labelme(read_json(path))]
            return labelme.read(folder, files)
        if len(json_files) > 1:
            names = ", ".join(path.relative_to(folder).as_posix() for path in json_files[:4])
            raise ValueError(f"{folder}: several annotation files in it ({names}): name one")
        return _read_file(json_files[0])
    if pair := instance_masks.pairs_of_folders(folder):
        if any(yolo.label_file(path, folder) for path in image_files(pair[0])[:20]):
            return yolo.read(folder, None)
        return instance_masks.read_numbered(folder, *pair)
    if any(folder.glob("*/masks")):
        return instance_masks.read_one_per_object(folder)
    if any(yolo.label_file(path, folder) for path in image_files(folder)[:20]):
        return yolo.read(folder, None)
    raise ValueError(f"{folder}: of none of the formats that are read ({FORMATS})")
