"""torch.compile: one graph for inference, a known number of breaks for the rest."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.structures import ImageList

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch(photos, sizes, height=128, width=160):
    images = torch.zeros(len(sizes), 3, height, width)
    for image, photo, (h, w) in zip(images, photos, sizes, strict=False):
        image[:, :h, :w] = (photo[:, :h, :w] - 0.45) / 0.225
    return ImageList(images, torch.tensor(sizes))


@torch.no_grad()
def test_padded_batch_to_detections_is_one_graph(model, photos):
    compiled = torch.compile(model.run_batch, fullgraph=True, backend="aot_eager")
    images = batch(photos, [(128, 160), (120, 131)])
    found, expected = compiled(images).detections, model.run_batch(images).detections
    assert expected.counts.min() > 3
    for name in ("boxes", "labels", "scores", "counts", "masks"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


@torch.no_grad()
def test_ten_images_of_one_padded_size_compile_once(model, photos):
    counter = CompileCounter()
    compiled = torch.compile(model.run_batch, fullgraph=True, backend=counter)
    for n in range(10):
        compiled(batch(photos[n % 3 :], [(128 - n, 131 + 2 * n)]))
    assert counter.frame_count == 1


@torch.no_grad()
@pytest.mark.parametrize("number", [1, 3])
def test_whole_model_breaks_where_detections_are_counted(model, photos, number):
    images = [photo[:, :200, :240] for photo in photos[:number]]
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    torch._dynamo.utils.counters.clear()
    results = compiled(images)
    # One call, ``counts.tolist()``, which breaks the function it is in and the one that called it.
    breaks = torch._dynamo.utils.counters["graph_break"]
    assert len(breaks) == 1, breaks
    assert counter.frame_count == 3, breaks
    for found, expected in zip(results, model(images), strict=True):
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])


def test_losses_and_gradients_of_training():
    torch.manual_seed(0)
    model = small_maskrcnn(
        3, widths=(8, 8, 8, 8), min_size=64, max_size=64, rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=20, box_batch_size_per_image=8,
    ).train()  # fmt: skip
    target = {
        "boxes": torch.tensor([[5.0, 5, 30, 40], [20, 10, 60, 60]]),
        "labels": torch.tensor([1, 2]),
        "masks": torch.ones(2, 64, 64, dtype=torch.uint8),
    }
    images = [torch.rand(3, 64, 64)]

    def gradients(losses):
        model.zero_grad()
        values = losses(images, [target], torch.Generator().manual_seed(0))
        sum(values.values()).backward()
        return values, {
            n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
        }

    expected = gradients(model.losses)
    found = gradients(torch.compile(model.losses, backend="aot_eager"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
