"""Many images: in order, bounded, overlapping; errors stay with the image or batch they are of."""

import threading
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

from maskrcnn_scratch.inference import Predictor
from maskrcnn_scratch.inference.prefetch import map_ahead

WAIT = 20  # seconds, for what would otherwise never happen


class Mean(nn.Module):
    """Finds one thing in an image, scored by its mean; remembers the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches = []

    def forward(self, images):
        assert torch.is_inference_mode_enabled()
        self.batches.append(len(images))
        return [{"scores": image.mean()[None], "labels": torch.ones(1)} for image in images]


def gray(value):
    return torch.full((3, 4, 4), float(value))


def scores(predictions):
    return [round(p.result()["scores"].item(), 4) for p in predictions]


@pytest.mark.parametrize("batch_size, batches", [(1, [1] * 7), (3, [3, 3, 1]), (9, [7])])
def test_order_and_batches(batch_size, batches):
    model = Mean()
    values = [i / 10 for i in range(7)]
    predictions = list(Predictor(model).stream(map(gray, values), batch_size, threads=3))
    assert scores(predictions) == values and model.batches == batches
    assert torch.equal(predictions[3].image, gray(0.3))


def test_only_images_of_the_same_padded_size_share_a_batch(small_model):
    """Before, six images of two sizes in one batch differed from one at a time."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(96, 128), (128, 96), (96, 128), (64, 160), (128, 96), (96, 127)]
    images = [torch.rand(3, *shape, generator=generator) for shape in shapes]
    seen = []
    hook = small_model.backbone.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
    try:
        together = list(Predictor(small_model).stream(images, batch_size=6))
        batches = seen.copy()
        alone = [Predictor(small_model)(image) for image in images]
    finally:
        hook.remove()
    assert sum(batch[0] for batch in batches) == len(images)
    assert len(batches) < len(images), "nothing was batched"
    assert {batch[2:] for batch in batches} == {batch[2:] for batch in seen[len(batches) :]}
    for expected, prediction in zip(alone, together, strict=True):
        found = prediction.result()
        assert len(found["scores"]) == len(expected["scores"]) > 0
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=1e-2)


def test_nothing():
    assert list(Predictor(Mean()).stream([])) == []


@pytest.mark.parametrize("bad", [[0], [1, 2], [4], [0, 1, 2, 3, 4]])
def test_bad_images_have_errors_in_their_places(bad, tmp_path):
    images = [gray(i / 10) for i in range(5)]
    for n in bad:
        images[n] = [tmp_path / "missing.png", gray(300), np.zeros(3)][n % 3]
    predictions = list(Predictor(Mean()).stream(images, batch_size=2))
    assert [n for n, p in enumerate(predictions) if p.error is not None] == bad
    for n, prediction in enumerate(predictions):
        if n in bad:
            message = ["missing.png", r"images\[\d\] holds values", r"images\[\d\] is a numpy"][
                n % 3
            ]
            with pytest.raises((FileNotFoundError, ValueError, TypeError), match=message):
                prediction.result()
        else:
            assert scores([prediction]) == [n / 10]


def test_equals_one_at_a_time(small_model, photographs):
    predictor = Predictor(small_model, score_threshold=0.2)
    images = [photograph[::2, ::2] for photograph in photographs.values()]
    for image, prediction in zip(images, predictor.stream(images, batch_size=1), strict=True):
        expected, found = predictor(image), prediction.result()
        assert expected.keys() == found.keys() and len(found["scores"]) > 0
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_images_are_read_while_the_model_works():
    second_read = threading.Event()

    class Waiting(Mean):
        def forward(self, images):
            assert second_read.wait(WAIT), "the next image was not read meanwhile"
            return super().forward(images)

    class Array(np.ndarray):
        """Says so when it is copied."""

        def copy(self, *args):
            second_read.set()
            return np.array(self)

    first, second = (np.zeros((4, 4, 3), np.uint8) for _ in range(2))
    # The first one is read before the model can start, of course; only the second says so.
    predictions = list(Predictor(Waiting()).stream([first, second.view(Array)]))
    assert scores(predictions) == [0, 0]


def test_no_more_is_read_than_two_batches_ahead():
    taken = 0

    def images():
        nonlocal taken
        for taken in count(1):  # noqa: B007, counted outside
            yield gray(0)

    stream = Predictor(Mean()).stream(images(), batch_size=3)
    for asked in range(1, 20):
        next(stream)
        batches = -(-asked // 3)
        assert taken <= 3 * batches + 2 * 3 + 1
    stream.close()


def test_map_ahead_works_on_while_one_is_looked_at():
    third = threading.Event()

    def work(number):
        if number == 2:
            third.set()
        if number == 1:
            raise KeyError(number)
        return -number

    futures = map_ahead(work, range(4), threads=1, ahead=2)
    assert next(futures).result() == 0
    assert third.wait(WAIT)
    with pytest.raises(KeyError):
        next(futures).result()
    assert [future.result() for future in futures] == [-2, -3]


def test_map_ahead_ends_early_without_the_rest():
    done = []
    futures = map_ahead(done.append, range(100), threads=1, ahead=5)
    next(futures).result()
    futures.close()
    assert len(done) <= 7


def test_wrong_arguments():
    for wrong in ({"batch_size": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match="both must be at least 1"):
            next(Predictor(Mean()).stream([gray(0)], **wrong))


class Allocating:
    """Fails as the allocator does: torch's on the GPU or on the CPU, or that of C++."""

    def __init__(self, allocator):
        self.allocator = allocator

    def __call__(self, *args, **kwargs):
        if self.allocator == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 EiB.\nMore.")
        if self.allocator == "c++":
            raise MemoryError("std::bad_alloc: cannot allocate")
        return torch.empty(2**60)


@pytest.mark.parametrize("allocator", ["cpu", "gpu", "c++"])
@pytest.mark.parametrize(
    "part, stage, advice",
    [
        ("backbone.forward", "the backbone", "batch_size"),
        ("rpn.nms", "the proposals", "min_size"),
        ("roi_heads.box_head.forward", "the box head", "rpn_post_nms_top_n_test"),
        ("roi_heads.mask_head.forward", "the mask head", "box_detections_per_img"),
        ("transform.paste", "pasting the masks", "run_batch"),
        ("transform.normalize", "the model", "min_size"),
    ],
)
def test_out_of_memory_names_the_stage_and_the_model_goes_on(
    part, stage, advice, allocator, small_model, photographs, monkeypatch
):
    predictor = Predictor(small_model)
    image = photographs["cat"][::3, ::3]
    expected = predictor(image)
    owner, _, name = part.rpartition(".")
    with monkeypatch.context() as patch:
        patch.setattr(small_model.get_submodule(owner), name, Allocating(allocator))
        with pytest.raises(torch.OutOfMemoryError, match=f"out of memory in {stage}: ") as raised:
            predictor(image)
        assert advice in str(raised.value) and "allocate" in str(raised.value)
        assert raised.value.__context__ is None, "its traceback would keep the tensors alive"
        predictions = list(predictor.stream([image, "missing.png"], batch_size=2))
        assert isinstance(predictions[0].error, torch.OutOfMemoryError)
        assert isinstance(predictions[1].error, FileNotFoundError)
    assert torch.equal(predictor(image)["boxes"], expected["boxes"])


def test_other_errors_of_the_model_are_left_as_they_are():
    model = Mean()
    model.forward = lambda images: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="size"):
        Predictor(model)(gray(0))


def test_one_large_image_does_not_cost_its_batch_the_results():
    class Small(Mean):
        def forward(self, images):
            if sum(image.shape[-1] for image in images) > 12:
                raise MemoryError
            return super().forward(images)

    model = Small()
    images = [gray(0.1), gray(0.2), torch.zeros(3, 4, 100), gray(0.3), gray(0.4)]
    predictions = list(Predictor(model).stream(images, batch_size=5))
    assert scores([*predictions[:2], *predictions[3:]]) == [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(torch.OutOfMemoryError, match=r"out of memory in the model: .*MemoryError"):
        predictions[2].result()


def test_filtering_by_score_copies_no_masks_that_all_stay():
    model = Mean()
    found = {"scores": torch.tensor([0.9, 0.8]), "masks": torch.zeros(2, 1, 4, 4)}
    model.forward = lambda images: [found]
    (prediction,) = Predictor(model, score_threshold=0.5).stream([gray(0)])
    assert prediction.result()["masks"].data_ptr() == found["masks"].data_ptr()
