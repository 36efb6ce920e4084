"""Checks ground truth before it is used, and names the image and the object that are wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# As structures.Target, with the names that a data set adds for error messages.
Target = Mapping[str, Any]


def check_targets(
    targets: Sequence[Target] | None,
    image_sizes: Sequence[tuple[int, int]],
    num_classes: int | None = None,
    has_mask: bool = True,
    values: bool = True,
) -> None:
    """Checks the targets of one batch, in the pixels of its images.

    Args:
        targets: a dict per image: ``boxes`` ``[G, 4]``, ``labels`` int64 ``[G]`` and
            ``masks`` ``[G, H, W]``. ``file_name`` and ``annotation_ids``, if present, are used in
            error messages. G may be 0.
        image_sizes: ``(height, width)`` of each image.
        num_classes: ``C``; None: labels have no upper limit.
        has_mask: whether masks are required.
        values: whether to check the values of boxes, labels and masks, and not only dtypes and
            shapes. This synchronises once with a GPU.

    Raises:
        TypeError: a field is not a tensor, or has the wrong dtype.
        ValueError: targets are None or not one per image; a field is missing or has the wrong
            shape; a box has no area or is not finite; a label is not in ``[1, C)``; a mask
            exceeds 1.
    """
    if targets is None:
        raise ValueError("targets are needed to compute losses, got None")
    if len(targets) != len(image_sizes):
        raise ValueError(f"got {len(targets)} targets for {len(image_sizes)} images")
    for index, (target, size) in enumerate(zip(targets, image_sizes, strict=True)):
        _check_boxes_and_labels(target, _name(target, index))
        if has_mask:
            _check_masks(target, size, _name(target, index))
    if values and len(targets) > 0:
        _check_values(targets, num_classes, has_mask)


def _check_boxes_and_labels(target: Target, name: str) -> None:
    boxes = _tensor(target, "boxes", name)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        hint = "; an image without objects has torch.zeros(0, 4)" if boxes.numel() == 0 else ""
        raise ValueError(f"{name}: boxes must have shape [G, 4], got {list(boxes.shape)}{hint}")
    if boxes.dtype == torch.bool or boxes.is_complex():
        raise TypeError(f"{name}: boxes must be numbers, got {boxes.dtype}")
    labels = _tensor(target, "labels", name)
    if labels.dtype != torch.int64:
        raise TypeError(f"{name}: labels must be int64, got {labels.dtype}")
    if labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"{name}: labels must have shape [{len(boxes)}], one per box, got {list(labels.shape)}"
        )


def _check_masks(target: Target, size: tuple[int, int], name: str) -> None:
    masks = _tensor(target, "masks", name)
    expected = [len(target["boxes"]), *size]
    if list(masks.shape) != expected:
        raise ValueError(
            f"{name}: masks must have shape {expected} (objects, height, width of the image), "
            f"got {list(masks.shape)}"
        )
    if masks.dtype not in (torch.uint8, torch.bool) and not masks.is_floating_point():
        raise TypeError(f"{name}: masks must be uint8, bool or floating point, got {masks.dtype}")


def _check_values(targets: Sequence[Target], num_classes: int | None, has_mask: bool) -> None:
    boxes = torch.cat([target["boxes"] for target in targets])  # [sum of G, 4]
    labels = torch.cat([target["labels"] for target in targets])  # [sum of G]
    bad_box = ~((boxes[:, 2:] > boxes[:, :2]) & boxes.isfinite().unflatten(1, (2, 2)).all(1)).all(1)
    bad_label = labels < 1
    if num_classes is not None:
        bad_label |= labels >= num_classes
    bad_mask = torch.zeros_like(bad_box)
    if has_mask:
        bad_mask = torch.cat([_mask_exceeds_one(target["masks"]) for target in targets])
    bad = bad_box | bad_label | bad_mask  # [sum of G]
    if not bool(bad.any()):  # the only host synchronisation
        return
    objects = [(i, j) for i, target in enumerate(targets) for j in range(len(target["boxes"]))]
    first = int(bad.nonzero()[0])
    image, index = objects[first]
    where = f"{_name(targets[image], image)}, object {index}"
    annotation_ids = targets[image].get("annotation_ids")
    if annotation_ids is not None:
        where += f" (annotation {int(annotation_ids[index])})"
    if bad_box[first]:
        raise ValueError(
            f"{where}: boxes must be finite with x2 > x1 and y2 > y1, got {boxes[first].tolist()}"
        )
    if bad_label[first]:
        upper = "" if num_classes is None else f" and at most {num_classes - 1}"
        raise ValueError(
            f"{where}: labels must be at least 1 (0 is background){upper}, got {int(labels[first])}"
        )
    most = targets[image]["masks"][index].max().item()
    raise ValueError(f"{where}: masks must be 0 outside and 1 inside the object, got {most:g}")


def _mask_exceeds_one(masks: Tensor) -> Tensor:
    """Which of ``masks [G, H, W]`` have a value above 1, bool ``[G]``."""
    if masks.dtype == torch.bool:
        return torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
    return masks.amax((1, 2)) > 1


def _tensor(target: Target, field: str, name: str) -> Tensor:
    if field not in target:
        raise ValueError(f"{name}: '{field}' is missing")
    value = target[field]
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: {field} must be a tensor, got {type(value).__name__}")
    return value


def _name(target: Target, index: int) -> str:
    file_name = target.get("file_name")
    return f"target {index}" if file_name is None else f"target {index} ({file_name})"
