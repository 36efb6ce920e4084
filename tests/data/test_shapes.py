"""The generated data: reproducible, and unchanged after writing and reading."""

import pytest
import torch

from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.shapes import MAX_OBJECTS, MIN_VISIBLE, ShapesDataset, write_coco


def assert_equal(item, other):
    assert torch.equal(item[0], other[0])
    assert item[1].keys() == other[1].keys()
    for name, value in item[1].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[1][name]), name
            assert value.dtype == other[1][name].dtype, name
        else:
            assert value == other[1][name], name


def test_items_depend_only_on_seed_and_index():
    dataset = ShapesDataset(5, seed=3)
    _ = dataset[0]
    assert_equal(dataset[4], ShapesDataset(9, seed=3)[4])
    assert not torch.equal(dataset[4][0], dataset[3][0])
    assert not torch.equal(dataset[4][0], ShapesDataset(5, seed=4)[4][0])


def test_written_data_set_reads_back_bit_for_bit(tmp_path):
    dataset = ShapesDataset(6, side=64)
    restored = CocoDataset(write_coco(dataset, tmp_path), tmp_path)
    assert len(restored) == 6
    assert restored.category_labels == dataset.category_labels
    assert restored.class_names == dataset.class_names
    assert restored.num_classes == dataset.num_classes == 4
    assert restored.sizes.tolist() == dataset.sizes.tolist()
    for index in range(6):
        assert_equal(restored[index], dataset[index])


def test_objects_are_visible_inside_and_apart():
    dataset = ShapesDataset(40)
    counts, overlaps = [], 0
    for image, target in (dataset[index] for index in range(40)):
        boxes, masks = target["boxes"], target["masks"]
        assert image.shape == (3, 128, 128)
        assert 0 <= image.min() < image.max() <= 1
        assert boxes.min() >= 0
        assert boxes.max() <= 128
        assert masks.sum(0).max() == 1
        sides = boxes[:, 2:] - boxes[:, :2]
        # The least that a quarter-hidden triangle of the smallest radius keeps.
        assert (target["area"] >= MIN_VISIBLE * 90).all()
        assert sides.min() >= 4
        counts.append(len(boxes))
        overlaps += int((torch.cdist(boxes[:, :2], boxes[:, :2]) < 30).sum()) - len(boxes)
    assert set(counts) == set(range(1, MAX_OBJECTS + 1))
    assert overlaps > 0


def test_bounds():
    with pytest.raises(IndexError):
        ShapesDataset(3)[3]
    with pytest.raises(ValueError, match="at least one image, got 0"):
        ShapesDataset(0)
