"""The data sets of ``maskrcnn train``, checked before the first step."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.dataset_check.model_fit import Geometry
from maskrcnn_scratch.dataset_check.prepare import BadDatasetError, Prepared, prepare
from maskrcnn_scratch.dataset_check.report import Report, format_problems
from maskrcnn_scratch.training import distributed
from maskrcnn_scratch.training.config import TrainConfig

SHOWN_PROBLEMS = 5  # of each kind


def read_data(config: TrainConfig) -> dict[str, Prepared]:
    """The data sets "train" and, if there is one, "val": checked, and in COCO format.

    With several processes the main one reads them; the reports of the others are empty.

    Raises:
        ValueError: there are errors in them, and ``skip_bad`` is false. They are printed.
    """
    if not distributed.is_main():
        return distributed.broadcast_from_main({})
    model = config.model
    geometry = Geometry(model.min_size[-1], model.max_size, model.anchor_sizes, model.aspect_ratios)
    parts = {"train": (config.train_annotations, config.train_images),
             "val": (config.val_annotations, config.val_images)}  # fmt: skip
    found, bad = {}, []
    for part, (source, images) in parts.items():
        if source is None:
            continue
        try:
            found[part] = prepare(
                Path(source),
                None if images is None else Path(images),
                Path(config.output) / "annotations" / f"{part}.json",
                skip_bad=config.skip_bad,
                decode_images=config.skip_bad,
                geometry=geometry,
                apply_exif=config.exif,
                allow_outside=config.allow_outside,
                crowds_as_objects=config.crowds_as_objects,
            )
        except BadDatasetError as error:
            bad.append(error)
            print(source, *format_problems(error.problems, SHOWN_PROBLEMS),
                  sep="\n", file=sys.stderr)  # fmt: skip
    if bad:
        raise ValueError("; ".join(map(str, bad)))
    without_reports = {part: replace(each, report=Report("", "")) for part, each in found.items()}
    distributed.broadcast_from_main(without_reports)
    return found


def largest(images: CocoDataset) -> list[int]:
    """The index of the image with the most pixels, and of the one with the most objects."""
    objects = [len(images.boxes_of(index)[1]) for index in range(len(images))]
    return [int(images.sizes.prod(1).argmax()), objects.index(max(objects))]
