"""RLE against pycocotools: equal text for every mask and polygon, and no crash on damaged text."""

import contextlib
import json
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_scratch import ops
from maskrcnn_scratch.ops import reference, rle

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20))


@pytest.fixture(params=["kernels", "reference"])
def implementation(request, monkeypatch):
    """The test runs with the kernels, and as where none were built."""
    if request.param == "reference":
        monkeypatch.setattr(rle, "kernels", reference)


def oracle(mask):
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


@given(masks)
def test_encode_decode_area_and_box(mask):
    encoded, expected = rle.encode(mask), oracle(mask)
    assert encoded["counts"].encode() == expected["counts"]
    assert encoded["size"] == list(mask.shape)
    assert (rle.decode(encoded) == mask).all()
    assert rle.area(encoded) == mask.sum()
    assert rle.bounding_box(encoded) == coco_mask.toBbox(expected).tolist()


@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 4))
def test_merge(seed, intersect, count):
    stack = np.random.default_rng(seed).random((count, 9, 6)) < 0.6
    merged = rle.merge([rle.encode(mask) for mask in stack], intersect)
    assert (rle.decode(merged) == (stack.all(0) if intersect else stack.any(0))).all()


def test_encode_takes_any_dtype_and_layout(implementation):
    mask = np.random.default_rng(0).random((8, 11)) < 0.5
    expected = rle.encode(mask)
    assert rle.encode(np.asfortranarray(mask)) == expected
    assert rle.encode(mask.astype(np.float32) * 7) == expected
    assert rle.encode(np.repeat(mask, 2, axis=1)[:, ::2]) == expected


@pytest.mark.parametrize("seed", range(20))
def test_polygons_rasterise_as_in_pycocotools(seed):
    rng = np.random.default_rng(seed)
    for trial in range(100):
        height, width = map(int, rng.integers(1, 40, 2))
        polygons = []
        for _ in range(rng.integers(1, 4)):
            xy = rng.uniform(-10, 50, 2 * rng.integers(3, 9))
            if trial % 3 == 0:
                xy = np.round(xy)  # on pixel corners
            if trial % 5 == 0:
                xy[2:4] = xy[:2]  # a point twice
            polygons.append(xy.tolist())
        expected = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        drawn = rle.from_polygons(polygons, (height, width))
        assert drawn["counts"].encode() == expected["counts"], (height, width, polygons)


@pytest.mark.parametrize("extent", [200.0, 5_000.0, 100_000.0])
def test_polygons_that_reach_far_beyond_the_image_rasterise_as_in_pycocotools(extent):
    rng = np.random.default_rng(0)
    for trial in range(40):
        height, width = map(int, rng.integers(1, 60, 2))
        xy = rng.uniform(-extent, extent + 60, 2 * rng.integers(3, 7))
        if trial % 4 == 0:
            xy[1::4] = xy[1]  # level edges
        if trial % 4 == 1:
            xy[::4] = rng.uniform(0, width)  # upright edges through the image
        (expected,) = coco_mask.frPyObjects([xy.tolist()], height, width)
        assert rle.from_polygons([xy], (height, width))["counts"].encode() == expected["counts"]


def test_a_thousand_far_vertices_cost_the_width_of_the_image():
    """Edges of some 10^7 fine steps each: minutes, if every step was taken."""
    xy = np.random.default_rng(0).uniform(-1e6, 1e6, 2_000)
    assert rle.area(rle.from_polygons([xy], (480, 640))) > 0


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([15.0, 60.0, 2_000.0]),
    st.integers(3, 8),
    st.integers(0, 2**32),
    st.sampled_from([3, 31, 301]),
)
def test_crossings_in_a_list_and_in_a_bitmap(size, extent, points, seed, odd):
    """Edges that are drawn twice are none, and pixels do not depend on the width of the image.

    A few crossings are kept in a list, more than 1/32 of the pixels in a bitmap.
    """
    height, width = size
    xy = np.random.default_rng(seed).uniform(-extent, extent + 20, (points, 2))
    if seed % 3 == 0:
        xy = xy.round()
    drawn = rle.from_polygons([xy.reshape(-1)], size)
    (expected,) = coco_mask.frPyObjects([xy.reshape(-1).tolist()], height, width)
    assert drawn["counts"].encode() == expected["counts"]
    repeated = np.tile(xy, (odd, 1)).reshape(-1)
    assert rle.from_polygons([repeated], size) == drawn
    wide = rle.decode(rle.from_polygons([xy.reshape(-1)], (height, width + 10_000)))
    assert (wide[:, :width] == rle.decode(drawn)).all()


@contextlib.contextmanager
def little_memory(megabytes):
    """This process may take that much more memory."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + megabytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units")
@pytest.mark.parametrize("far, repeats", [(True, 1001), (False, 101)])
def test_a_polygon_of_many_vertices_takes_little_memory(far, repeats):
    """10^6 far vertices have 3 * 10^8 crossings; those of 10^5 edges through the mask, 6 * 10^7."""
    xy = np.random.default_rng(0).uniform(-1e6, 1e6, (1000, 2))
    xy[:6] *= 480 / 1e6
    if not far:
        xy[:, 1] *= 480 / 1e6
    once = rle.from_polygons([xy.reshape(-1)], (480, 640))
    repeated = np.tile(xy, (repeats, 1)).reshape(-1)
    with little_memory(100):
        assert rle.from_polygons([repeated], (480, 640)) == once
    assert 0 < rle.area(once) < 480 * 640


def test_other_threads_run_while_a_polygon_is_drawn():
    xy = np.random.default_rng(0).uniform(0, 600, 20_000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # a thread keeps the interpreter until it lets go of it

    def ran_meanwhile():
        started, finished = threading.Event(), threading.Event()

        def draw():
            started.set()
            rle.from_polygons([xy], (600, 600))
            finished.set()

        thread = threading.Thread(target=draw)
        thread.start()
        started.wait()
        meanwhile = not finished.is_set()
        thread.join()
        return meanwhile

    try:
        assert any(ran_meanwhile() for _ in range(20))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("split", ["train", "val"])
def test_reference_rles_of_coco(implementation, data_root, split):
    folder = data_root / "coco_tiny" / "annotations"
    reference = json.loads((folder / f"tiny_coco_{split}_pycoco_rle.json").read_text())
    dataset = json.loads((folder / f"instances_{split}2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    assert len(dataset["annotations"]) == len(reference) > 300
    for annotation in dataset["annotations"]:
        drawn = rle.from_segmentation(annotation["segmentation"], sizes[annotation["image_id"]])
        box, pixels = rle.bounding_box(drawn), rle.area(drawn)
        assert {**drawn, "area": pixels, "bbox": box} == reference[str(annotation["id"])]


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # in pycocotools
def test_nuclei_survive_decoding(implementation, data_root):
    dataset = json.loads((data_root / "nuclei" / "instances_val.json").read_text())
    for annotation in dataset["annotations"]:
        segmentation = annotation["segmentation"]
        mask = rle.decode(segmentation)
        assert (mask == coco_mask.decode(segmentation)).all()
        assert rle.encode(mask) == segmentation
        assert rle.area(segmentation) == annotation["area"]


def test_segmentation_forms_agree(implementation):
    mask = np.zeros((6, 5), bool)
    mask[1:4, 2:4] = True
    compressed = rle.encode(mask)
    uncompressed = {"size": [6, 5], "counts": [13, 3, 3, 3, 8]}
    as_bytes = {**compressed, "counts": compressed["counts"].encode()}
    for segmentation in (compressed, uncompressed, as_bytes, [[2, 1, 4, 1, 4, 4, 2, 4]]):
        assert rle.from_segmentation(segmentation, (6, 5)) == compressed


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "no polygon"),
        ([[1, 1, 2, 2]], "at least 3 points, got 4 numbers"),
        ([[1, 1, 2, 2, 3, 3, 4]], "got 7 numbers"),
        ([[1, 1, 2, 2, 3, float("nan")]], "nan is not finite"),
        ([[1, 1, 2, 2, 3, 1e30]], "is not finite or more than 1e6 pixels away"),
        ({"size": [6, 5]}, "without size or counts"),
        ({"size": [5, 6], "counts": [30]}, "mask is 5 x 6 .*, its image 6 x 5"),
        ({"size": [6, 5], "counts": [29]}, "covers 29 pixels"),
        ({"size": [6, 5], "counts": "~"}, "bad character at 0"),
        ({"size": [6, 5], "counts": "P"}, "ends within a count"),
        ({"size": [6, 5], "counts": "oooooooo0"}, "bad character"),
        ({"size": 6, "counts": [30]}, r"size is not \[height, width\]"),
        ({"size": [6, 5, 1], "counts": [30]}, r"size is not \[height, width\]"),
        ({"size": [6, 5], "counts": [2**32 + 30]}, "a run of 4294967326 pixels"),
        ({"size": [6, 5], "counts": [10**400]}, "no list of run lengths"),
        ({"size": [6, 5], "counts": "\udc80"}, "ascii"),
        ({"size": [6, 5], "counts": b"\xff"}, "ascii"),
        ([[1, 1, 2, 2, 3, {}]], "a polygon is x0, y0, .* in numbers"),
        ([{"x": 1}], "a polygon is x0, y0, .* in numbers"),
        ([[1, 1, 2, 2, 3, 10**400]], "a polygon is x0, y0, .* in numbers"),
        ([[[1, 1], [2, 2], [3, 3]]], "got 6 numbers"),
        (None, "neither polygons nor RLE but NoneType"),
        ("12", "neither polygons nor RLE but str"),
    ],
)
def test_bad_segmentations_say_what_is_wrong(implementation, segmentation, message):
    with pytest.raises(ValueError, match=message):
        rle.from_segmentation(segmentation, (6, 5))


@pytest.mark.parametrize(
    "size",
    [(2**63, 6), (6, 2**63), (-(2**63) - 1, 6), (2**40, 60), (2**16, 2**16), (-5, 6), (0, 6),
     (2.5, 6), ("6", 6), (None, 6), (6,)],
)  # fmt: skip
def test_sizes_that_no_mask_has(size):
    """As a damaged file may give them: one error, and no memory of that size."""
    mask = {"size": list(size), "counts": "52203"}
    for call in (
        lambda: rle.decode(mask),
        lambda: rle.area(mask),
        lambda: rle.bounding_box(mask),
        lambda: rle.merge([mask]),
        lambda: rle.from_polygons([[0, 0, 5, 0, 5, 5]], size),
        lambda: rle.from_segmentation([[0, 0, 5, 0, 5, 5]], size),
        lambda: rle.paste(np.zeros((1, 28, 28)), np.array([[0, 0, 1, 1]]), size),
        lambda: rle.from_packed(np.zeros((1, 1, 1)), size),
    ):
        with pytest.raises(ValueError, match=r"^mask size (.* is empty or too large|must be hei)"):
            call()


@given(st.text(alphabet=[chr(c) for c in range(33, 127)], max_size=12))
def test_damaged_text_raises_and_nothing_else(text):
    with contextlib.suppress(ValueError):
        rle.decode({"size": [4, 3], "counts": text})


def test_bad_arrays(implementation):
    with pytest.raises(ValueError, match=r"\[H, W\], got shape \(2, 3, 4\)"):
        rle.encode(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="0 x 3 is empty"):
        rle.encode(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="share one size"):
        rle.merge([rle.encode(np.zeros((2, 3))), rle.encode(np.zeros((3, 2)))])
    with pytest.raises(ValueError, match="share one size"):
        rle.merge([])


def pasted_cases(hard):
    """Smooth or hard masks in boxes inside, across and outside the border, some of no size."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(60):
        height, width = torch.randint(1, 150, (2,), generator=generator).tolist()
        detections, side = trial % 6, (28, 14)[trial % 2]
        image = torch.tensor([width, height])
        centres = torch.rand(detections, 2, generator=generator) * image
        halves = torch.rand(detections, 2, generator=generator) * image * 0.6
        boxes = torch.cat([centres - halves, centres + halves], 1)
        if trial % 7 == 0:
            boxes[:1] = 0
        coarse = torch.rand(detections, 1, 5, 5, generator=generator)
        masks = torch.zeros(detections, 1, side, side)
        if detections:
            masks = F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
        yield masks.round() if hard else masks, boxes, (height, width)


@pytest.mark.parametrize("hard", [False, True])
def test_paste_is_encoding_the_pasted_mask(implementation, hard):
    for masks, boxes, size in pasted_cases(hard):
        expected = (ops.paste_masks(masks, boxes, size)[:, 0] >= 0.5).numpy()
        pasted = rle.paste(masks[:, 0].numpy(), boxes.numpy(), size, num_threads=2)
        assert pasted == [rle.encode(mask) for mask in expected]


@pytest.mark.parametrize("hard", [False, True])
def test_paste_agrees_with_torchvision(hard):
    for masks, boxes, size in pasted_cases(hard):
        expected = paste_masks_in_image(masks, boxes, size)[:, 0]
        pasted = rle.paste(masks[:, 0].numpy(), boxes.numpy(), size)
        for soft, drawn in zip(expected, pasted, strict=True):
            differs = (soft >= 0.5).numpy() != rle.decode(drawn)
            # Blends of zeros and ones often are 0.5 but for the last bit.
            limit = 1e-6 if hard else 0.0
            assert (abs(soft.numpy() - 0.5)[differs] <= limit).all()


def test_paste_checks_its_arguments(implementation):
    masks, boxes = np.zeros((2, 28, 28), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"masks must be \[D, M, M\]"):
        rle.paste(masks[:, :5], boxes, (10, 10))
    with pytest.raises(ValueError, match=r"boxes must be \[2, 4\]"):
        rle.paste(masks, boxes[:1], (10, 10))
    with pytest.raises(ValueError, match="0 x 10 is empty"):
        rle.paste(masks, boxes, (0, 10))
