"""The same seed gives torchvision's sample; DeviceSampler has the same distribution."""

import pytest
import torch
from torchvision.models.detection import _utils as torchvision_utils

from maskrcnn_scratch.targets.sampler import (
    NO_SAMPLE,
    BalancedPositiveNegativeSampler,
    DeviceSampler,
    ReplaySampler,
    as_indices,
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
    ours = BalancedPositiveNegativeSampler(256, 0.5)(labels)
    after_ours = torch.rand(1)
    torch.manual_seed(7)
    theirs = torchvision_utils.BalancedPositiveNegativeSampler(256, 0.5)(labels)
    assert torch.equal(after_ours, torch.rand(1)), "the number of random numbers differs"
    for our_kind, their_kind in zip(ours, theirs, strict=True):
        for mask, expected in zip(our_kind, their_kind, strict=True):
            assert mask.dtype == expected.dtype == torch.uint8
            assert torch.equal(mask, expected)


def test_with_a_generator_the_global_one_is_not_used():
    before = torch.get_rng_state()
    draw = [
        BalancedPositiveNegativeSampler(64, 0.25)(BATCHES[1], torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    for first, second in zip(*draw, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_replay_sampler():
    recorded = BalancedPositiveNegativeSampler(64, 0.25)(BATCHES[1])
    replay = ReplaySampler([recorded, recorded])
    assert replay(BATCHES[1]) is recorded
    with pytest.raises(ValueError, match="3 images, not 1"):
        replay(BATCHES[0])
    with pytest.raises(ValueError, match="were used"):
        replay(BATCHES[1])
    with pytest.raises(ValueError, match="image 0: recorded index 9 is outside its 4 boxes"):
        ReplaySampler([([torch.tensor([9])], [torch.tensor([0])])])([torch.zeros(4)])


def kinds(labels, sample):
    """Indices of positives and of negatives in the sample of one image."""
    indices = torch.cat(sample)
    indices = indices[indices != NO_SAMPLE]
    assert len(indices.unique()) == len(indices)
    return indices[labels[indices] >= 1], indices[labels[indices] == 0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize(
    "num_positive, num_negative", [(50, 200), (3, 200), (0, 200), (50, 5), (0, 0), (2, 3)]
)
def test_device_sampler_counts_and_kinds(num_positive, num_negative, dtype):
    ignored = 260 - num_positive - num_negative
    labels = [labels_with(num_positive, num_negative, ignored, seed).to(dtype) for seed in (0, 1)]
    expected_positive = min(num_positive, 8)
    expected_negative = min(num_negative, 32 - expected_positive)
    for image, sample in enumerate(zip(*DeviceSampler(32, 0.25)(labels), strict=True)):
        assert [len(indices) for indices in sample] == [8, 24]
        positive, negative = kinds(labels[image], sample)
        assert (len(positive), len(negative)) == (expected_positive, expected_negative)
        assert (torch.cat(sample) != NO_SAMPLE).sum() == len(positive) + len(negative)
        assert set(positive.tolist()) <= set(sample[0].tolist()), "only these get a mask loss"


def test_device_sampler_with_few_boxes_and_images_with_different_numbers_of_boxes():
    labels = [labels_with(4, 6), labels_with(1, 2, 2), labels_with(0, 0)]
    first, rest = DeviceSampler(256, 0.25)(labels)
    assert [len(f) for f in first] == [10, 10, 10] and [len(r) for r in rest] == [0, 0, 0]
    for image, (num_positive, num_negative) in enumerate([(4, 6), (1, 2), (0, 0)]):
        positive, negative = kinds(labels[image], (first[image], rest[image]))
        assert (len(positive), len(negative)) == (num_positive, num_negative)


def test_device_sampler_is_uniform():
    num_positive, num_negative, draws = 20, 100, 20_000
    labels = torch.tensor([1] * num_positive + [0] * num_negative).expand(draws, -1)
    sample = DeviceSampler(32, 0.25)(list(labels), torch.Generator().manual_seed(0))
    positive, negative = map(torch.stack, sample)  # [draws, 8], [draws, 24]
    assert positive.max() < num_positive <= negative.min()
    drawn = torch.cat((positive, negative), dim=1).flatten()
    frequency = torch.bincount(drawn, minlength=120) / draws
    expected = torch.tensor([8 / num_positive] * num_positive + [24 / num_negative] * num_negative)
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((frequency - expected).abs() < 4.5 * deviation).all()
    # Each pair is sampled as often as in sampling without replacement: boxes are independent.
    pairs = torch.zeros(draws, num_positive).scatter_(1, positive, 1.0)
    together = (pairs.T @ pairs / draws)[~torch.eye(num_positive, dtype=torch.bool)]
    probability = 8 / 20 * 7 / 19
    assert (together - probability).abs().max() < 4.5 * (probability / draws) ** 0.5


@pytest.mark.parametrize("sampler", [BalancedPositiveNegativeSampler, DeviceSampler])
def test_numbers_of_positives_and_negatives(sampler):
    """For random, small numbers of candidates: fewer and more than each limit."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        labels = torch.randint(-1, 3, (int(torch.randint(0, 24, (), generator=generator)),),
                               generator=generator)  # fmt: skip
        sample = as_indices(sampler(16, 0.25)([labels], generator))
        positive, negative = kinds(labels, [indices[0] for indices in sample])
        expected = min(int((labels >= 1).sum()), 4)
        assert len(positive) == expected
        assert len(negative) == min(int((labels == 0).sum()), 16 - expected)
