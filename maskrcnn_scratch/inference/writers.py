"""Writes detections to files, in five formats.

png   the picture with boxes, names and masks drawn on it
jpg   the same as JPEG, which is smaller
json  file, file_name, image_id, height, width and detections: label, category, score, box (xyxy in
      pixels); page, from 1, for a page of a document or frame of an animation
rle   as json, and each detection has its mask as a COCO RLE: segmentation
coco  one list for all images in COCO's results format: image_id, file_name, category_id, bbox (x,
      y, width, height), score, segmentation

The formats video and frames are those of a video; see ``inference.video``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from maskrcnn_scratch.evaluation.coco_ap import CocoResult
from maskrcnn_scratch.evaluation.model_results import coco_results, encode_masks
from maskrcnn_scratch.files import write_atomically, write_json
from maskrcnn_scratch.inference.image_jobs import ImageJob
from maskrcnn_scratch.inference.out_of_memory import naming_stage
from maskrcnn_scratch.inference.visualize import draw_detections
from maskrcnn_scratch.roi_heads.branches import outputs_of_branches

Format = Literal["png", "jpg", "json", "coco", "rle", "video", "frames"]
Draw = Callable[[Tensor, Mapping[str, Any], Mapping[int, str]], Image.Image]

# One file per image; COCO results are one file for all images.
SUFFIXES: dict[Format, str] = {
    "png": ".png", "jpg": ".jpg", "json": ".json", "rle": ".rle.json",
    "video": ".mp4", "frames": ".jsonl",
}  # fmt: skip
COCO_RESULTS = "coco_results.json"
_SAVE_OPTIONS: dict[Format, dict[str, Any]] = {
    # Pillow's default of 6 takes over three times as long for files that are 10% smaller.
    "png": {"format": "PNG", "compress_level": 1},
    "jpg": {"format": "JPEG", "quality": 92, "subsampling": 0},  # thin coloured lines stay sharp
}


def plan_outputs(
    names: Sequence[str], folder: Path, formats: Sequence[Format]
) -> list[dict[Format, Path]]:
    """The files to write for each image; all differ, except for the one ``coco`` file.

    If several images have the same name, the second and later get -2, -3 and so on.

    Args:
        names: relative path of each image's files in ``folder``, without suffix.
    """
    taken: set[str] = {COCO_RESULTS}
    planned = []
    for base in names:
        name, count = base, 1
        while True:
            files = [name + SUFFIXES[kind] for kind in formats if kind in SUFFIXES]
            if taken.isdisjoint(map(str.lower, files)):  # some file systems ignore case
                break
            count += 1
            name = f"{base}-{count}"
        taken.update(map(str.lower, files))
        planned.append(
            {
                kind: folder / (name + SUFFIXES[kind] if kind in SUFFIXES else COCO_RESULTS)
                for kind in formats
            }
        )
    return planned


class ResultWriter:
    """Writes the detections of each image, and collects the COCO results of all of them.

    Args:
        class_names: name of each label.
        category_labels: label of each COCO category id.
        draw: makes the picture of an image, its detections and the class names.
    """

    def __init__(
        self,
        class_names: Mapping[int, str],
        category_labels: Mapping[int, int],
        draw: Draw = draw_detections,
    ) -> None:
        self.class_names = class_names
        self.category_ids = {label: category for category, label in category_labels.items()}
        self.draw = draw
        self.coco_results: list[CocoResult] = []

    def write(
        self,
        job: ImageJob,
        image: Tensor,
        result: Mapping[str, Any],
        paths: Mapping[Format, Path],
    ) -> str:
        """Writes the files in ``paths``; none is left half written.

        Args:
            job: what the image is called in the results.
            image: ``[3, H, W]`` in 0-1.
            result: the model's dict for this image; its masks may also be a list of RLEs.
            paths: one entry of ``plan_outputs``.

        Returns:
            A summary such as "2 person, 1 dog".

        Raises:
            OSError: a file cannot be written.
            torch.OutOfMemoryError: not enough memory to draw or to encode the masks.
        """
        return naming_stage(
            lambda: self._write(job, image, result, paths),
            "writing the results",
            "give smaller images, or a higher score threshold",
        )

    def _write(
        self,
        job: ImageJob,
        image: Tensor,
        result: Mapping[str, Any],
        paths: Mapping[Format, Path],
    ) -> str:
        if pictures := _SAVE_OPTIONS.keys() & paths.keys():
            picture = self.draw(image, result, self.class_names)
            for kind in pictures:
                save_picture(picture, paths[kind], _SAVE_OPTIONS[kind])
        head: dict[str, Any] = {
            "file": str(job.file),
            "file_name": job.file_name,
            "image_id": job.image_id,
            "height": image.shape[-2],
            "width": image.shape[-1],
        }
        if job.page is not None:
            head["page"] = job.page + 1
        boxes_only = {key: value for key, value in result.items() if key != "masks"}
        if "json" in paths:
            write_json(paths["json"], head | {"detections": self.describe(boxes_only)})
        with_masks = encode_masks(result) if "rle" in paths or "coco" in paths else result
        if "rle" in paths:
            write_json(paths["rle"], head | {"detections": self.describe(with_masks)})
        if "coco" in paths:
            found = coco_results(with_masks, job.image_id, self.category_ids)
            self.coco_results += [entry | {"file_name": job.file_name} for entry in found]
        return self.summarise(result)

    def write_coco(self, path: Path) -> None:
        """Writes the COCO results of all images so far."""
        write_json(path, self.coco_results)

    def describe(self, detections: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Detections, whose masks if any are RLEs, as plain values.

        What further branches have added is in ``outputs``, by name.
        """
        found: list[dict[str, Any]] = [
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
        for name, values in outputs_of_branches(detections).items():
            for detection, value in zip(found, values.tolist(), strict=True):
                detection.setdefault("outputs", {})[name] = value
        return found

    def summarise(self, result: Mapping[str, Any]) -> str:
        """Such as "2 person, 1 dog"."""
        names = Counter(self._name(label) for label in result["labels"].tolist())
        return ", ".join(f"{count} {name}" for name, count in names.most_common()) or "nothing"

    def _name(self, label: int) -> str:
        return self.class_names.get(label, f"label {label}")


def save_picture(picture: Image.Image, path: Path, options: Mapping[str, Any]) -> None:
    """Writes a picture as ``PIL.Image.save`` does with these options, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda stream: picture.save(stream, **options))
