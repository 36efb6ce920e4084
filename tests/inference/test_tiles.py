"""Tiles of a large image: where they are, and that each object is found once."""

import numpy as np
import pytest
import torch
from torch import nn

from maskrcnn_scratch.evaluation.model_results import detect_rle
from maskrcnn_scratch.inference.merge_tiles import Piece, merge_pieces
from maskrcnn_scratch.inference.tiles import (
    TiledPredictor,
    place_rle,
    predict_tiled,
    tile_rects,
)
from maskrcnn_scratch.ops import rle


@pytest.mark.parametrize("size", [(100, 100), (100, 230), (64, 64), (1, 65), (501, 333)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5, 0.9])
def test_tiles_cover_the_image_and_overlap(size, overlap):
    height, width = size
    rects = tile_rects(height, width, 64, overlap)
    seen = np.zeros(size, int)
    for x1, y1, x2, y2 in rects:
        assert (x2 - x1, y2 - y1) == (min(64, width), min(64, height))
        seen[y1:y2, x1:x2] += 1
    assert seen.min() >= 1
    for side, axis in ((width, 0), (height, 1)):
        starts = sorted({rect[axis] for rect in rects})
        assert starts[0] == 0 and starts[-1] == max(side - 64, 0)
        steps = np.diff(starts)
        assert (steps <= 64 * (1 - overlap)).all() or (steps <= 1).all()


@pytest.mark.parametrize("size", [(7, 5), (1, 9), (12, 1), (12, 15)])
def test_masks_are_moved_exactly(size):
    height, width = size
    generator = np.random.default_rng(0)
    for density in (0, 0.5, 1):
        mask = generator.random(size) < density
        for x, y in ((0, 0), (15 - width, 12 - height)):
            whole = np.zeros((12, 15), bool)
            whole[y : y + height, x : x + width] = mask
            moved = place_rle(rle.encode(mask), (x, y), (12, 15))
            assert moved == rle.encode(whole)


class Blobs(nn.Module):
    """Finds the connected white areas of an image, whose red value is the label.

    It stands for a perfect detector that sees only what an image shows. Areas of fewer than
    ``smallest`` pixels, and of more than ``largest``, are not found.
    """

    def __init__(self, smallest=1, largest=10**9, with_masks=True):
        super().__init__()
        self.smallest, self.largest, self.with_masks = smallest, largest, with_masks
        self.seen = []

    def forward(self, images):
        return [self.find(image) for image in images]

    def find(self, image):
        from skimage.measure import label, regionprops

        self.seen.append(tuple(image.shape[-2:]))
        classes = (image[0] * 255).round().long().numpy()
        boxes, labels, scores, masks = [], [], [], []
        for region in regionprops(label(classes, background=0)):
            if not self.smallest <= region.area <= self.largest:
                continue
            y1, x1, y2, x2 = region.bbox
            mask = np.zeros(classes.shape, np.float32)
            mask[tuple(region.coords.T)] = 1
            boxes.append([x1, y1, x2, y2])
            labels.append(int(classes[tuple(region.coords[0])]))
            # What is cut is less certain, but not always.
            scores.append(0.5 + 0.4 * (region.area % 97) / 97)
            masks.append(mask)
        order = np.argsort(scores)[::-1].copy()
        result = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)[order],
            "labels": torch.tensor(labels, dtype=torch.int64)[order],
            "scores": torch.tensor(scores)[order],
        }
        if self.with_masks:
            stacked = np.stack(masks) if masks else np.zeros((0, *classes.shape), np.float32)
            result["masks"] = torch.from_numpy(stacked)[order, None]
        return result


def scene(*objects, size=(200, 300)):
    """An image [3, H, W] with discs (x, y, radius, label)."""
    y, x = np.mgrid[: size[0], : size[1]]
    classes = np.zeros(size, np.float32)
    for cx, cy, radius, label in objects:
        classes[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = label
    return torch.from_numpy(classes / 255).expand(3, -1, -1).contiguous()


def by_place(result):
    """Boxes, labels and masks in the order of the boxes."""
    order = sorted(range(len(result["boxes"])), key=lambda i: result["boxes"][i].tolist())
    found = [(result["boxes"][i].tolist(), int(result["labels"][i])) for i in order]
    return found, [result["masks"][i] for i in order] if "masks" in result else None


SMALL = [(20, 20, 8, 1), (98, 50, 9, 1), (150, 100, 10, 2), (252, 101, 10, 1), (290, 190, 9, 2)]


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("tile, overlap", [(100, 0.25), (64, 0.4), (150, 0.2)])
def test_small_objects_appear_once_wherever_tiles_cut(tile, overlap, with_masks):
    """The model finds nothing in the whole image, where small objects vanish."""
    image = scene(*SMALL)
    expected = by_place(detect_rle(Blobs(with_masks=with_masks), [image])[0])
    model = Blobs(with_masks=with_masks)
    found = predict_tiled(OnlyTiles(model), image, tile, overlap)
    assert by_place(found) == expected
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


class OnlyTiles(nn.Module):
    """Finds nothing in the first image it is given, which is the whole."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, images):
        self.calls += 1
        return self.model([image * 0 for image in images] if self.calls == 1 else images)


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("radius", [30, 60, 90])
def test_objects_larger_than_the_overlap_are_joined_from_their_parts(radius, with_masks):
    image = scene((150, 100, radius, 3))
    expected = by_place(detect_rle(Blobs(with_masks=with_masks), [image])[0])
    model = OnlyTiles(Blobs(with_masks=with_masks))
    assert by_place(predict_tiled(model, image, 80, 0.25)) == expected


def test_parts_belong_to_a_large_object_of_the_whole_image():
    image = scene((150, 100, 90, 3), *SMALL[:1])
    expected = by_place(detect_rle(Blobs(), [image])[0])
    assert by_place(predict_tiled(Blobs(), image, 80, 0.25)) == expected


def test_neighbours_and_other_classes_are_kept():
    """Touching boxes of one class, and a small object of another class inside a large one."""
    image = scene((100, 100, 20, 1), (128, 128, 19, 1), (230, 100, 30, 2), (230, 100, 10, 1))
    expected = by_place(detect_rle(Blobs(), [image])[0])
    for tile in (64, 90, 120):
        found = predict_tiled(Blobs(), image, tile, 0.5)
        boxes, labels = zip(*by_place(found)[0], strict=True)
        assert (list(boxes), list(labels)) == tuple(map(list, zip(*expected[0], strict=True)))


def test_one_tile_gives_the_model_s_own_result(small_model, photograph):
    plain = detect_rle(small_model, [photograph])[0]
    assert len(plain["boxes"]) > 2
    for tile in (max(photograph.shape[1:]), 2000):
        tiled = predict_tiled(small_model, photograph, tile)
        assert tiled["masks"] == plain["masks"]
        for key in ("boxes", "labels", "scores"):
            assert torch.equal(tiled[key], plain[key])


def test_detections_of_one_tile_are_never_merged(small_model, photograph):
    plain = detect_rle(small_model, [photograph])[0]
    height, width = photograph.shape[1:]
    merged = merge_pieces([Piece((0, 0, width, height), (height, width), plain)])
    assert torch.equal(merged["scores"], plain["scores"])
    assert torch.equal(merged["boxes"], plain["boxes"])


def test_batches_of_tiles_change_nothing(small_model, photograph):
    one, four = (predict_tiled(small_model, photograph, 64, batch_size=n) for n in (1, 4))
    assert torch.equal(one["labels"], four["labels"]) and len(one["labels"]) > 2
    torch.testing.assert_close(one["boxes"], four["boxes"], rtol=0, atol=1e-2)


def test_as_a_predictor(small_model, photograph):
    predictor = TiledPredictor(small_model, 64, 0.3, score_threshold=0.3)
    result = predictor(photograph)
    everything = predict_tiled(small_model, photograph, 64, 0.3)
    kept = everything["scores"] >= 0.3
    assert torch.equal(result["scores"], everything["scores"][kept]) and kept.any()
    assert len(result["masks"]) == int(kept.sum())
    streamed = [p.result() for p in predictor.stream([photograph, photograph])]
    assert all(torch.equal(each["boxes"], result["boxes"]) for each in streamed)


def test_nothing_found():
    image = torch.zeros(3, 200, 300)
    for with_masks in (True, False):
        found = predict_tiled(Blobs(with_masks=with_masks), image, 100)
        assert found["boxes"].shape == (0, 4) and len(found["labels"]) == len(found["scores"]) == 0
        assert found.get("masks", []) == []


def test_empty_masks_are_kept():
    image = scene(*SMALL)

    class NoMasks(Blobs):
        def find(self, image):
            result = super().find(image)
            return {**result, "masks": result["masks"] * 0}

    found = predict_tiled(NoMasks(), image, 100, 0.3)
    assert len(found["boxes"]) == len(SMALL)
    assert {rle.area(mask) for mask in found["masks"]} == {0}


@pytest.mark.parametrize(
    "arguments, message",
    [((0,), "tile is 0"), ((10, -0.1), "overlap is -0.1"), ((10, 1), "overlap is 1"),
     ((10, 0.2, 0), "batch_size 0")],
)  # fmt: skip
def test_unfit_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        predict_tiled(Blobs(), torch.zeros(3, 20, 20), *arguments)


@pytest.fixture(scope="module")
def small_model():
    from maskrcnn_scratch.builders.from_config import ModelConfig, build_model

    config = ModelConfig(
        architecture="small", weights="none", min_size=(96,), max_size=160, detections=20
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(config, 3).eval()


@pytest.fixture(scope="module")
def photograph(photographs):
    return torch.from_numpy(photographs["cat"][::3, ::3].copy()).permute(2, 0, 1) / 255
