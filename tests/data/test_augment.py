"""Augmentation: boxes and masks move together, and random numbers depend only on the draw."""

import pytest
import torch
from torchvision.transforms import v2

from maskrcnn_scratch.data.augment import (
    Augmentation,
    AugmentedDataset,
    RandomGamma,
    RandomRotate90,
    RandomSquareCrop,
    augment,
    boxes_of_masks,
)
from maskrcnn_scratch.data.loader import Draw

EVERYTHING = Augmentation(
    vertical_flip=True,
    rotate90=True,
    crop=(10, 30),
    scale_jitter=(0.5, 2.0),
    scale_jitter_size=32,
    photometric=True,
    gamma=(0.8, 1.2),
)


def item(boxes, size=(20, 30)):
    """An image whose pixel values are the labels of their objects, and its target."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(1, len(boxes) + 1),
        "masks": masks,
        "area": masks.sum((1, 2)).float(),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.uint8),
        "annotation_ids": torch.arange(len(boxes)) + 100,
        "image_id": 7,
        "file_name": "a.png",
    }
    image = (masks * target["labels"].view(-1, 1, 1)).sum(0) / 10
    return image.expand(3, -1, -1).clone(), target


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return item([[2, 3, 8, 9], [10 + index, 5, 20, 15]])


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomHorizontalFlip(1.0),
        v2.RandomVerticalFlip(1.0),
        *[pytest.param(RandomRotate90(), id=f"rotate90-{seed}") for seed in range(6)],
        RandomSquareCrop(12, 18),
        Augmentation(rotate90=True, crop=(15, 20), vertical_flip=True).build(),
    ],
)
@pytest.mark.parametrize("seed", range(6))
def test_boxes_masks_and_pixels_move_together(transform, seed):
    torch.manual_seed(seed)
    image, target = augment(*item([[2, 3, 8, 9], [12, 5, 20, 15], [0, 12, 7, 20]]), transform)
    height, width = image.shape[1:]
    assert target["masks"].shape[1:] == (height, width)
    assert torch.equal(target["boxes"], boxes_of_masks(target["masks"]))
    for label, mask in zip(target["labels"], target["masks"], strict=True):
        assert torch.equal(image[0] == label / 10, mask.bool())
    assert torch.equal(target["area"], target["masks"].sum((1, 2)).float())
    assert type(image) is type(target["boxes"]) is type(target["masks"]) is torch.Tensor


def test_boxes_inside_the_image_are_not_rounded():
    image, target = item([[2, 3, 8, 9]])
    target["boxes"] = torch.tensor([[2.25, 3.5, 7.75, 8.5]])
    _, target = augment(image, target, v2.RandomHorizontalFlip(1.0))
    assert target["boxes"].tolist() == [[22.25, 3.5, 27.75, 8.5]]


@pytest.mark.parametrize("size", [31, 333, 1023])
def test_boxes_at_the_border_are_exact_after_resizing(size):
    image, target = item([[0, 0, 30, 20], [7, 0, 30, 20]])
    target["boxes"] = torch.tensor([[0, 0, 30, 20], [7.5, 0, 30, 19.5]])
    image, target = augment(image, target, v2.Resize((size, size)))
    scale = torch.tensor([size / 30, size / 20] * 2)
    expected = torch.tensor([[0, 0, 30, 20], [7.5, 0, 30, 19.5]]) * scale
    assert torch.allclose(target["boxes"], expected)
    assert target["boxes"].max() <= size


def test_fields_that_would_not_move_are_refused():
    image, target = item([[2, 3, 8, 9]])
    kept = augment(image, {**target, "weights": torch.ones(1)}, v2.RandomHorizontalFlip(1.0))[1]
    assert kept["weights"].tolist() == [1]
    keypoints = torch.tensor([[[4.0, 5, 1], [6, 7, 1]]])
    with pytest.raises(TypeError, match=r"'keypoints', \[1, 2, 3\], would not move"):
        augment(image, {**target, "keypoints": keypoints}, v2.RandomHorizontalFlip(1.0))


def test_objects_without_pixels_are_dropped_from_every_field():
    def crop(image, target):
        return v2.functional.crop(image, 0, 0, 6, 6), {
            **target,
            "boxes": v2.functional.crop(target["boxes"], 0, 0, 6, 6),
            "masks": v2.functional.crop(target["masks"], 0, 0, 6, 6),
        }

    source = item([[2, 3, 9, 9], [12, 5, 20, 15]])
    _, target = augment(*source, crop)
    assert target["boxes"].tolist() == [[2, 3, 6, 6]]
    assert target["masks"].shape == (1, 6, 6)
    assert target["area"].tolist() == [12]
    assert target["annotation_ids"].tolist() == [100]
    assert (target["image_id"], target["file_name"]) == (7, "a.png")
    assert len(source[1]["boxes"]) == 2


@pytest.mark.parametrize("seed", range(4))
def test_every_transform_accepts_empty_targets(seed):
    torch.manual_seed(seed)
    image, target = augment(*item([]), EVERYTHING.build())
    assert image.shape == (3, 32, 32)
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 32, 32)


def test_images_stay_in_range():
    dataset = AugmentedDataset(Items(), EVERYTHING.build())
    images = torch.stack([dataset[Draw(epoch, 0)][0] for epoch in range(10)])
    assert images.min() >= 0
    assert images.max() <= 1


def test_random_numbers_depend_only_on_seed_epoch_and_image():
    dataset = AugmentedDataset(Items(), EVERYTHING.build(), seed=5)
    state = torch.get_rng_state()
    first = dataset[Draw(2, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    _ = dataset[Draw(0, 3)]
    again = AugmentedDataset(Items(), EVERYTHING.build(), seed=5)[Draw(2, 1)]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1]["masks"], again[1]["masks"])
    for other in (dataset[Draw(3, 1)], AugmentedDataset(Items(), EVERYTHING.build())[Draw(2, 1)]):
        assert not torch.equal(first[0], other[0])


def test_bad_ranges():
    with pytest.raises(ValueError, match="1 <= min <= max, got 20, 10"):
        RandomSquareCrop(20, 10)
    with pytest.raises(ValueError, match="0 < low <= high"):
        RandomGamma(0, 1)


def test_objects_with_a_box_only_keep_it():
    image, target = item([[2, 3, 8, 9], [10, 5, 20, 15]])
    target["masks"][1] = 0
    target["has_mask"] = torch.tensor([True, False])
    _, flipped = augment(image, target, v2.RandomHorizontalFlip(1.0))
    assert flipped["boxes"].tolist() == [[22, 3, 28, 9], [10, 5, 20, 15]]
    assert flipped["has_mask"].tolist() == [True, False] and flipped["area"].tolist() == [36, 100]

    def crop(image, target):
        cut = {k: v2.functional.crop(target[k], 0, 0, 20, 15) for k in ("boxes", "masks")}
        return v2.functional.crop(image, 0, 0, 20, 15), {**target, **cut}

    _, cropped = augment(image, target, crop)
    assert cropped["boxes"].tolist() == [[2, 3, 8, 9], [10, 5, 15, 15]]
