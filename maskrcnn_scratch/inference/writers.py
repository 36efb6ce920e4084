"""Writes detections to files, in four formats.

png   the picture with boxes, names and masks drawn on it
json  file, image_id, height, width and detections: label, category, score, box (xyxy in pixels)
rle   as json, and each detection has its mask as a COCO RLE: segmentation
coco  one list for all images in COCO's results format: image_id, category_id, bbox (x, y, width,
      height), score, segmentation
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from maskrcnn_scratch.evaluation.coco_ap import CocoResult
from maskrcnn_scratch.evaluation.model_results import coco_results
from maskrcnn_scratch.files import write_atomically, write_json
from maskrcnn_scratch.inference.out_of_memory import naming_stage
from maskrcnn_scratch.inference.visualize import draw_detections
from maskrcnn_scratch.ops import rle

Format = Literal["png", "json", "coco", "rle"]

# One file per image; COCO results are one file for all images.
SUFFIXES: dict[Format, str] = {"png": ".png", "json": ".json", "rle": ".rle.json"}
COCO_RESULTS = "coco_results.json"


def plan_outputs(
    images: Sequence[Path], folder: Path, formats: Sequence[Format]
) -> list[dict[Format, Path]]:
    """The files to write for each image; all differ, except for the one ``coco`` file.

    A file has the name of its image with another suffix. If several images have the same name, the
    second and later get -2, -3 and so on.
    """
    taken: set[str] = {COCO_RESULTS}
    planned = []
    for image in images:
        name, count = image.stem, 1
        while True:
            files = [name + SUFFIXES[kind] for kind in formats if kind in SUFFIXES]
            if taken.isdisjoint(map(str.lower, files)):  # some file systems ignore case
                break
            count += 1
            name = f"{image.stem}-{count}"
        taken.update(map(str.lower, files))
        planned.append(
            {
                kind: folder / (name + SUFFIXES[kind] if kind in SUFFIXES else COCO_RESULTS)
                for kind in formats
            }
        )
    return planned


def image_ids(images: Sequence[Path]) -> list[int]:
    """COCO image ids: the file names, if all are distinct numbers; otherwise 1, 2, ..."""
    if all(image.stem.isdecimal() for image in images):
        ids = [int(image.stem) for image in images]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(images) + 1))


class ResultWriter:
    """Writes the detections of each image, and collects the COCO results of all of them.

    Args:
        class_names: name of each label.
        category_labels: label of each COCO category id.
    """

    def __init__(self, class_names: Mapping[int, str], category_labels: Mapping[int, int]) -> None:
        self.class_names = class_names
        self.category_ids = {label: category for category, label in category_labels.items()}
        self.coco_results: list[CocoResult] = []

    def write(
        self,
        file: Path,
        image: Tensor,
        result: Mapping[str, Tensor],
        paths: Mapping[Format, Path],
        image_id: int,
    ) -> str:
        """Writes the files in ``paths``; none is left half written.

        Args:
            file: the image's file.
            image: ``[3, H, W]`` in 0-1.
            result: the model's dict for this image.
            paths: one entry of ``plan_outputs``.
            image_id: the image's number in COCO results.

        Returns:
            A summary such as "2 person, 1 dog".

        Raises:
            OSError: a file cannot be written.
            torch.OutOfMemoryError: not enough memory to draw or to encode the masks.
        """
        return naming_stage(
            lambda: self._write(file, image, result, paths, image_id),
            "writing the results",
            "give smaller images, or a higher score threshold",
        )

    def _write(
        self,
        file: Path,
        image: Tensor,
        result: Mapping[str, Tensor],
        paths: Mapping[Format, Path],
        image_id: int,
    ) -> str:
        if "png" in paths:
            picture = draw_detections(image, result, self.class_names)
            paths["png"].parent.mkdir(parents=True, exist_ok=True)
            write_atomically(paths["png"], lambda stream: picture.save(stream, "PNG"))
        detections: dict[str, Any] = {**result}
        masks = detections.pop("masks", None)
        if "json" in paths:
            write_json(paths["json"], self._to_json(file, image_id, image, detections))
        if masks is not None and ("rle" in paths or "coco" in paths):
            detections["masks"] = [rle.encode(mask[0] > 0.5) for mask in masks]
        if "rle" in paths:
            write_json(paths["rle"], self._to_json(file, image_id, image, detections))
        if "coco" in paths:
            self.coco_results += coco_results(detections, image_id, self.category_ids)
        names = Counter(self._name(label) for label in result["labels"].tolist())
        return ", ".join(f"{count} {name}" for name, count in names.most_common()) or "nothing"

    def write_coco(self, path: Path) -> None:
        """Writes the COCO results of all images so far."""
        write_json(path, self.coco_results)

    def _to_json(
        self, file: Path, image_id: int, image: Tensor, detections: Mapping[str, Any]
    ) -> dict[str, Any]:
        found = [
            {"label": label, "category": self._name(label), "score": score, "box": box}
            for label, score, box in zip(
                detections["labels"].tolist(),
                detections["scores"].tolist(),
                detections["boxes"].tolist(),
                strict=True,
            )
        ]
        if "masks" in detections:
            for detection, mask in zip(found, detections["masks"], strict=True):
                detection["segmentation"] = mask
        height, width = image.shape[-2:]
        return {
            "file": str(file),
            "image_id": image_id,
            "height": height,
            "width": width,
            "detections": found,
        }

    def _name(self, label: int) -> str:
        return self.class_names.get(label, f"label {label}")
