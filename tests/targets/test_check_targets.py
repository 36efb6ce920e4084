"""Errors for invalid targets name the image and the object, and say what was expected."""

import pytest
import torch

from maskrcnn_scratch.targets.check_targets import check_targets

SIZES = [(20, 30), (40, 50)]


def valid_targets():
    return [
        {
            "boxes": torch.tensor([[0.0, 0, 5, 5], [2, 2, 9, 30]][:count]),
            "labels": torch.tensor([1, 3][:count]),
            "masks": torch.zeros(count, *size, dtype=torch.uint8),
            "annotation_ids": [70, 71][:count],
            "file_name": f"{count}.jpg",
        }
        for count, size in zip((1, 2), SIZES, strict=True)
    ]


def test_valid_and_empty_targets_pass():
    check_targets(valid_targets(), SIZES, num_classes=4)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 20, 30),
    }
    check_targets([empty], [(20, 30)], num_classes=4)
    check_targets([], [])


def nan_box(t):
    t["boxes"][1, 2] = torch.nan


def box_without_height(t):
    t["boxes"][1] = torch.tensor([4.0, 4, 9, 4])


@pytest.mark.parametrize("make_invalid, error, message", [
    (lambda t: t.pop("boxes"), ValueError, r"target 1 \(2.jpg\): 'boxes' is missing"),
    (lambda t: t.update(boxes=[[0, 0, 1, 1]]), TypeError, "boxes must be a tensor, got list"),
    (lambda t: t.update(boxes=torch.zeros(0)), ValueError, r"got \[0\]; an image without objects"),
    (lambda t: t.update(boxes=t["boxes"].bool()), TypeError, "numbers, got torch.bool"),
    (lambda t: t.update(labels=t["labels"].int()), TypeError, "int64, got torch.int32"),
    (lambda t: t.update(labels=t["labels"][:1]), ValueError, r"shape \[2\].*got \[1\]"),
    (lambda t: t.pop("masks"), ValueError, "'masks' is missing"),
    (lambda t: t.update(masks=t["masks"].mT), ValueError, r"\[2, 40, 50\].*got \[2, 50, 40\]"),
    (lambda t: t.update(masks=t["masks"].int()), TypeError, "masks must be uint8"),
    (lambda t: t["labels"].fill_(4), ValueError, r"object 0 \(annotation 70\).*at most 3, got 4"),
    (lambda t: t["labels"].fill_(0), ValueError, "at least 1 .* got 0"),
    (lambda t: t["masks"][1].fill_(255), ValueError, r"object 1 \(annotation 71\): .* got 255"),
    (nan_box, ValueError, r"object 1 \(annotation 71\): boxes must be finite"),
    (box_without_height, ValueError, r"x2 > x1 and y2 > y1, got \[4.0, 4.0, 9.0, 4.0\]"),
])  # fmt: skip
def test_invalid_targets_are_named(make_invalid, error, message):
    targets = valid_targets()
    make_invalid(targets[1])
    with pytest.raises(error, match=message):
        check_targets(targets, SIZES, num_classes=4)


def test_missing_targets():
    with pytest.raises(ValueError, match="got None"):
        check_targets(None, SIZES)
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        check_targets(valid_targets()[:1], SIZES)


def test_masks_and_upper_label_are_optional():
    targets = valid_targets()
    targets[0].pop("masks")
    targets[0]["labels"].fill_(1000)
    check_targets(targets, SIZES, has_mask=False)
