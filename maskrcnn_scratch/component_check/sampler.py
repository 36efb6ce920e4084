"""Checks of a sampler. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_scratch.call_part import accepts, with_context
from maskrcnn_scratch.component_check.common import part_checks, require_equal, require_tensor
from maskrcnn_scratch.component_check.host import model_around
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import Subject, shapes
from maskrcnn_scratch.structures import IGNORE_LABEL
from maskrcnn_scratch.targets.sampler import (
    MASK_TYPES,
    NO_SAMPLE,
    BalancedPositiveNegativeSampler,
    as_indices,
)

BOXES = 300  # A

# Images by name: the fractions of positive, negative and ignored boxes.
IMAGES = {
    "few objects": (0.05, 0.75, 0.2),
    "many objects": (0.8, 0.1, 0.1),
    "zero objects": (0.0, 0.9, 0.1),
    "objects alone": (1.0, 0.0, 0.0),
    "all ignored": (0.0, 0.0, 1.0),
}


def plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.Sampler``."""

    def model_with(part: Any) -> Any:
        model = model_around(subject.setting)
        model.rpn.fg_bg_sampler = model.roi_heads.fg_bg_sampler = part
        return model

    def call(part: Any) -> Any:
        return sample(part, list(example().values()))

    return Plan(
        checks=_checks(subject),
        model_with=model_with,
        default=lambda: BalancedPositiveNegativeSampler(64, 0.5),
        call=call,
        training_only=True,
    )


def example(dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    """Labels ``[A]`` of each image of ``IMAGES``, mixed."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, fractions in IMAGES.items():
        positive, negative = (int(fraction * BOXES) for fraction in fractions[:2])
        labels = torch.full((BOXES,), IGNORE_LABEL)
        labels[:positive] = 1 + torch.arange(positive) % 3
        labels[positive : positive + negative] = 0
        found[name] = labels[torch.randperm(BOXES, generator=generator)].to(dtype)
    return found


def _checks(subject: Subject) -> Iterator[CheckResult]:
    part = subject.part
    yield outcome("types and shapes", lambda: types_and_shapes(part))
    yield outcome("value range", lambda: in_range_and_unique(part))
    yield outcome("positives and negatives", lambda: labels_agree(part))
    yield outcome("no boxes", lambda: no_boxes(part))
    yield outcome("generator", lambda: uses_the_generator(part, list(example().values())))
    yield from part_checks(subject, sample, list(example().values()))


def sample(part: Any, labels: list[Tensor]) -> Any:
    """``part(labels)``, with losses and scores of the RPN if it asks for them."""
    generator = torch.Generator().manual_seed(1)
    scores = [torch.rand(len(of_image), generator=generator) for of_image in labels]
    losses = [
        torch.where(of_image >= 1, -score.log(), -(1 - score).log()).where(of_image >= 0, 0)
        for of_image, score in zip(labels, scores, strict=True)
    ]
    part = with_context(part, losses=losses, scores=scores)
    if accepts(part, "generator"):
        return part(labels, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return part(labels)


def sampled_indices(part: Any, labels: list[Tensor]) -> Any:
    return as_indices(sample(part, labels))


def types_and_shapes(part: Any) -> str:
    """Batches of 1 and all; integer labels of the RoI heads, float labels of the RPN."""
    for dtype in (torch.int64, torch.float32):
        images = list(example(dtype).values())
        for labels in (images, images[:1]):
            output = sample(part, labels)
            require(
                isinstance(output, (list, tuple)) and len(output) == 2,
                f"returns {shapes(output)}, expected (positives, negatives)",
            )
            for name, indices in zip(("positives", "negatives"), output, strict=True):
                require(
                    isinstance(indices, (list, tuple)) and len(indices) == len(labels),
                    f"{len(labels)} images give {name} {shapes(indices)}",
                )
                for n, of_image in enumerate(indices):
                    what = f"{name} of image {n}"
                    if isinstance(of_image, Tensor) and of_image.dtype in MASK_TYPES:
                        require_tensor(of_image, what, (len(labels[n]),), of_image.dtype)
                    else:
                        require_tensor(of_image, what, (None,), torch.int64)
    sizes = [(len(p), len(n)) for p, n in zip(*sampled_indices(part, images), strict=True)]
    return f"positives and negatives per image: {sizes}"


def in_range_and_unique(part: Any) -> str:
    """Indices are in ``[0, A)`` or ``NO_SAMPLE``, and none is sampled twice."""
    images = example()
    for name, *pair in zip(images, *sampled_indices(part, list(images.values())), strict=True):
        indices = torch.cat(pair)
        real = indices[indices != NO_SAMPLE]
        require(
            bool(((real >= 0) & (real < BOXES)).all()),
            f"{name}: indices {real.sort().values[[0, -1]].tolist() if len(real) else []} are the "
            f"first and last, expected 0 to {BOXES - 1}",
        )
        values, counts = real.unique(return_counts=True)
        twice = values[counts > 1]
        require(
            len(twice) == 0,
            f"{name}: {len(twice)} indices are sampled more than once, such as "
            f"{twice[:5].tolist()}",
        )
    return "each index at most once"


def labels_agree(part: Any) -> str:
    """Positives have labels of 1 or more, negatives 0; ignored boxes are never sampled.

    A sampler of fixed size may put negatives after the positives in the first tensor.
    """
    images = example()
    positives, negatives = sampled_indices(part, list(images.values()))
    fixed = len({len(indices) for indices in positives}) == 1
    for (name, labels), positive, negative in zip(
        images.items(), positives, negatives, strict=True
    ):
        first = labels[positive[positive != NO_SAMPLE]]
        second = labels[negative[negative != NO_SAMPLE]]
        if fixed:
            descending = bool((first.clamp(max=1).diff() <= 0).all())
            require(descending, f"{name}: negatives come before positives: {first.tolist()[:8]}")
            first = first[first != 0]
        wrong = first[first < 1]
        require(len(wrong) == 0, f"{name}: {len(wrong)} of {len(first)} positives have labels "
                f"{wrong.unique().tolist()}")  # fmt: skip
        wrong = second[second != 0]
        require(len(wrong) == 0, f"{name}: {len(wrong)} of {len(second)} negatives have labels "
                f"{wrong.unique().tolist()}")  # fmt: skip
    return ", ".join(IMAGES)


def no_boxes(part: Any) -> str:
    empty = torch.zeros(0, dtype=torch.int64)
    positives, negatives = sampled_indices(part, [empty])
    indices = torch.cat((positives[0], negatives[0]))
    require(bool((indices == NO_SAMPLE).all()), f"indices {indices.tolist()} of no boxes")
    return ""


def uses_the_generator(part: Any, labels: list[Tensor]) -> str:
    """All numbers come from the generator, so that a validation loss leaves training as it is."""
    if not accepts(part, "generator"):
        return "takes no generator"
    before = torch.get_rng_state()
    first, second = sample(part, labels), sample(part, labels)
    require_equal(second, first, "a second sample from the same seed")
    require(
        torch.equal(torch.get_rng_state(), before),
        "the global random numbers were used although a generator was given",
    )
    return "the same seed gives the same sample"
