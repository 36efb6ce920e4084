"""A padded sample of fixed size gives the same losses as the same boxes without padding."""

import pytest
import torch

from maskrcnn_scratch import host_sync
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.data.shapes import ShapesDataset
from maskrcnn_scratch.targets.sampler import NO_SAMPLE, DeviceSampler, ReplaySampler


@pytest.fixture
def model():
    torch.manual_seed(0)
    return small_maskrcnn(
        4, min_size=96, max_size=128, rpn_post_nms_top_n_train=200, rpn_pre_nms_top_n_train=20,
    ).eval()  # fmt: skip


def shapes(without_objects=()):
    """Two images; those in ``without_objects`` have no objects."""
    items = [ShapesDataset(2, side=96, seed=2)[n] for n in range(2)]
    for n in without_objects:
        image, target = items[n]
        items[n] = image, {name: target[name][:0] for name in ("boxes", "labels", "masks")}
    return [image for image, _ in items], [target for _, target in items]


class Recording(DeviceSampler):
    """Records its sample in the form of ``BalancedPositiveNegativeSampler``: sorted, no padding."""

    def __call__(self, labels, generator=None):
        sample = super().__call__(labels, generator)
        both = [torch.cat(pair) for pair in zip(*sample, strict=True)]
        found = [indices[indices != NO_SAMPLE].sort().values for indices in both]
        self.missing = sum(int((indices == NO_SAMPLE).sum()) for indices in both)
        self.recorded = tuple(
            [
                chosen[is_kind(in_image[chosen])]
                for in_image, chosen in zip(labels, found, strict=True)
            ]
            for is_kind in (lambda label: label >= 1, lambda label: label == 0)
        )
        return sample


def losses_and_gradients(model, images, targets):
    model.zero_grad()
    losses = model.losses(images, targets, torch.Generator().manual_seed(1))
    sum(losses.values()).backward()
    return losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("without_objects", [(), (1,), (0, 1)])
def test_losses_and_gradients_equal_those_without_padding(
    model, without_objects, on_device, monkeypatch
):
    images, targets = shapes(without_objects)
    stages = (model.rpn, model.roi_heads)
    for stage, samples in zip(stages, (64, 160), strict=True):
        stage.fg_bg_sampler = Recording(samples, 0.5)
    with monkeypatch.context() as patch:
        if on_device:  # then all entries are computed, padding included
            patch.setattr(host_sync, "can_sync", lambda tensor: False)
        found = losses_and_gradients(model, images, targets)
    assert model.roi_heads.fg_bg_sampler.missing > 0
    for stage in stages:
        stage.fg_bg_sampler = ReplaySampler([stage.fg_bg_sampler.recorded])
    expected = losses_and_gradients(model, images, targets)
    assert (expected[0]["loss_mask"] > 0) == (without_objects != (0, 1))
    assert found[1].keys() == expected[1].keys()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
