"""COCO annotations from a data set in memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_scratch.data.batch import Target
from maskrcnn_scratch.ops import rle


def to_coco(dataset: Dataset[tuple[Tensor, Target]]) -> dict[str, Any]:
    """The content of a COCO annotation file for any data set, with masks as compressed RLE.

    Items, ``category_labels`` and ``class_names`` of the data set must be as in
    :class:`CocoDataset`. Every item is read once.
    """
    names: dict[int, str] = dataset.class_names  # type: ignore[attr-defined]
    categories = {
        label: category
        for category, label in dataset.category_labels.items()  # type: ignore[attr-defined]
    }
    images, annotations = [], []
    for index in range(len(dataset)):  # type: ignore[arg-type]
        image, target = dataset[index]
        height, width = image.shape[1:]
        images.append(
            {
                "id": target["image_id"],
                "file_name": target["file_name"],
                "height": height,
                "width": width,
            }
        )
        for row, (x1, y1, x2, y2) in enumerate(target["boxes"].tolist()):
            annotations.append(
                {
                    "id": int(target["annotation_ids"][row]),
                    "image_id": target["image_id"],
                    "category_id": categories[int(target["labels"][row])],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(target["area"][row]),
                    "iscrowd": int(target["iscrowd"][row]),
                    "segmentation": rle.encode(target["masks"][row].numpy()),
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": categories[label], "name": names[label]} for label in categories],
    }
