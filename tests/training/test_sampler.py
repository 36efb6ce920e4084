"""Same seed, same sample as torchvision; the device form has the same distribution."""

import pytest
import torch
from torchvision.models.detection import _utils as torchvision_utils

from maskrcnn_scratch.training.sampler import (
    BalancedPositiveNegativeSampler,
    DeviceSampler,
    ReplaySampler,
)


def labels_with(num_positive, num_negative, num_ignored=0, seed=0):
    labels = torch.tensor([2] * num_positive + [0] * num_negative + [-1] * num_ignored)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


BATCHES = [
    [labels_with(300, 5000, 40)],
    [labels_with(3, 1000), labels_with(0, 900, 10), labels_with(200, 20)],
    [labels_with(0, 0, 7), labels_with(5, 0), labels_with(0, 0)],
]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("labels", BATCHES)
def test_same_seed_same_sample_as_torchvision(labels, dtype):
    labels = [labels_in_image.to(dtype) for labels_in_image in labels]
    torch.manual_seed(7)
    positive, negative = BalancedPositiveNegativeSampler(256, 0.5)(labels)
    after_ours = torch.rand(1)
    torch.manual_seed(7)
    theirs = torchvision_utils.BalancedPositiveNegativeSampler(256, 0.5)(labels)
    assert torch.equal(after_ours, torch.rand(1)), "not as many numbers drawn"
    for ours, masks in zip((positive, negative), theirs, strict=True):
        for indices, mask in zip(ours, masks, strict=True):
            assert indices.dtype == torch.int64
            assert torch.equal(indices, torch.where(mask)[0])


def test_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    draw = [
        BalancedPositiveNegativeSampler(64, 0.25)(BATCHES[1], torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    for first, second in zip(*draw, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_replay():
    recorded = BalancedPositiveNegativeSampler(64, 0.25)(BATCHES[1])
    replay = ReplaySampler([recorded, recorded])
    assert replay(BATCHES[1]) is recorded
    with pytest.raises(ValueError, match="3 images, not 1"):
        replay(BATCHES[0])
    with pytest.raises(ValueError, match="used up"):
        replay(BATCHES[1])
    with pytest.raises(ValueError, match="image 0: recorded index 9 is outside of its 4 boxes"):
        ReplaySampler([([torch.tensor([9])], [torch.tensor([0])])])([torch.zeros(4)])


@pytest.mark.parametrize(
    "num_positive, num_negative", [(50, 200), (3, 200), (0, 200), (50, 5), (0, 0), (2, 3)]
)
def test_device_sampler_counts_and_kinds(num_positive, num_negative):
    rows = [labels_with(num_positive, num_negative, 260 - num_positive - num_negative, s)
            for s in (0, 1)]  # fmt: skip
    labels = torch.stack(rows)
    sample = DeviceSampler(32, 0.25)(labels)
    expected_positive = min(num_positive, 8)
    expected_negative = min(num_negative, 32 - expected_positive)
    assert sample.positive_mask.sum(1).tolist() == [expected_positive] * 2
    assert sample.negative_mask.sum(1).tolist() == [expected_negative] * 2
    for row in range(2):
        positive = sample.positive[row][sample.positive_mask[row]]
        negative = sample.negative[row][sample.negative_mask[row]]
        assert (labels[row][positive] >= 1).all() and (labels[row][negative] == 0).all()
        assert len(positive.unique()) == len(positive) and len(negative.unique()) == len(negative)


def test_device_sampler_with_fewer_boxes_than_places():
    sample = DeviceSampler(256, 0.5)(labels_with(4, 6).expand(3, 10))
    assert sample.positive.shape == (3, 10) and sample.negative.shape == (3, 10)
    assert sample.positive_mask.sum().item() == 12 and sample.negative_mask.sum().item() == 18


def test_device_sampler_is_uniform():
    num_positive, num_negative, draws = 20, 100, 20_000
    labels = torch.tensor([1] * num_positive + [0] * num_negative).expand(draws, -1)
    sample = DeviceSampler(32, 0.25)(labels, torch.Generator().manual_seed(0))
    drawn = torch.cat(
        (sample.positive[sample.positive_mask], sample.negative[sample.negative_mask])
    )
    frequency = torch.bincount(drawn, minlength=120) / draws
    expected = torch.tensor([8 / num_positive] * num_positive + [24 / num_negative] * num_negative)
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((frequency - expected).abs() < 4.5 * deviation).all()
    # Chosen together as often as two of eight without replacement: not in blocks or pairs.
    pairs = torch.zeros(draws, num_positive).scatter_(1, sample.positive, 1.0)
    together = (pairs.T @ pairs / draws)[~torch.eye(num_positive, dtype=torch.bool)]
    probability = 8 / 20 * 7 / 19
    assert (together - probability).abs().max() < 4.5 * (probability / draws) ** 0.5
