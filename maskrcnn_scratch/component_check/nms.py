"""Checks of an NMS. Shapes: see ``structures``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskrcnn_scratch.component_check.common import (
    part_checks,
    require_equal,
    require_finite,
    require_tensor,
)
from maskrcnn_scratch.component_check.host import model_around
from maskrcnn_scratch.component_check.plan import Plan
from maskrcnn_scratch.component_check.result import CheckResult, outcome, require
from maskrcnn_scratch.component_check.subject import Subject, random_boxes, shapes
from maskrcnn_scratch.ops import batched_nms_padded

CANDIDATES = 60  # K
MAX_OUT = 20
GROUPS = 4


class Candidates(NamedTuple):
    """The first three arguments of an NMS."""

    boxes: Tensor  # [N, K, 4]
    scores: Tensor  # [N, K]; -inf is padding
    groups: Tensor  # int64 [N, K]

    def run(self, part: Any) -> Any:
        return run(part, *self)

    def of_image(self, n: int) -> Candidates:
        return Candidates(*(value[n : n + 1] for value in self))


def run(part: Any, boxes: Tensor, scores: Tensor, groups: Tensor) -> Any:
    return part(boxes, scores, groups, 0.5, MAX_OUT, GROUPS)


def plan(subject: Subject) -> Plan:
    """A plan for ``interfaces.NMS``."""
    setting = subject.setting
    candidates = example(setting.side)

    def model_with(part: Any) -> Any:
        model = model_around(setting)
        model.rpn.nms = model.roi_heads.nms = part
        return model

    return Plan(
        checks=_checks(subject, candidates),
        model_with=model_with,
        default=lambda: batched_nms_padded,
        call=candidates.run,
    )


def example(side: int) -> Candidates:
    """Three images: many candidates, half of them padding, padding alone."""
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(3 * CANDIDATES, side).reshape(3, CANDIDATES, 4)
    scores = torch.rand(3, CANDIDATES, generator=generator)
    groups = torch.randint(GROUPS, (3, CANDIDATES), generator=generator)
    scores[1, ::2] = -torch.inf
    scores[2] = -torch.inf
    # Padding may be a box like any other, or without area.
    boxes[1, ::4] = 0
    return Candidates(boxes, scores, groups)


def _checks(subject: Subject, candidates: Candidates) -> Iterator[CheckResult]:
    part = subject.part
    yield outcome("types and shapes", lambda: types_and_shapes(part, candidates))
    yield outcome("value range", lambda: value_range(part, candidates))
    yield outcome("padding", lambda: no_padding(part, candidates))
    yield outcome("best first", lambda: best_first(part, candidates))
    yield outcome("fewer candidates than entries", lambda: few_candidates(part, candidates))
    yield outcome("batch independence", lambda: images_alone(part, candidates))
    yield outcome("groups", lambda: groups(part, candidates))
    yield from part_checks(subject, run, *example(subject.setting.side))


def selected(output: Any, n: int) -> Tensor:
    """Indices of the selected boxes of image ``n``."""
    return output[0][n, : int(output[1][n])]


def types_and_shapes(part: Any, candidates: Candidates) -> str:
    """Batches of 3 and 1."""
    output = None
    for some in (candidates, candidates.of_image(0)):
        output = some.run(part)
        require(
            isinstance(output, (list, tuple)) and len(output) in (2, 3),
            f"returns {shapes(output)}, expected (indices, counts)",
        )
        count = len(some.boxes)
        require_tensor(output[0], "indices", (count, MAX_OUT), torch.int64)
        require_tensor(output[1], "counts", (count,), torch.int64)
        if len(output) == 3:
            require_tensor(output[2], "scores", (count, MAX_OUT))
    return shapes(output)


def value_range(part: Any, candidates: Candidates) -> str:
    """Counts and indices stay in range, and no box is selected twice."""
    output = candidates.run(part)
    indices, counts = output[0], output[1]
    require(
        bool((counts >= 0).all() and (counts <= MAX_OUT).all()),
        f"counts are {counts.tolist()}, expected 0 to {MAX_OUT}",
    )
    require(
        bool((indices >= 0).all() and (indices < CANDIDATES).all()),
        f"indices, padding included, are {indices.min()} to {indices.max()}, expected 0 to "
        f"{CANDIDATES - 1}",
    )
    for n in range(len(counts)):
        kept = selected(output, n)
        require(
            len(kept.unique()) == len(kept),
            f"image {n}: some box is selected twice: {kept.tolist()}",
        )
    if len(output) == 3:
        require_finite([output[2][n, :count] for n, count in enumerate(counts.tolist())], "scores")
    return f"{counts.tolist()} of {(candidates.scores > -torch.inf).sum(1).tolist()} candidates"


def no_padding(part: Any, candidates: Candidates) -> str:
    """A score of -inf marks padding, which must not be selected."""
    output = candidates.run(part)
    for n in range(len(candidates.scores)):
        kept = selected(output, n)
        padded = kept[candidates.scores[n, kept] == -torch.inf]
        require(
            len(padded) == 0,
            f"image {n}: {len(padded)} padded entries (score -inf) are selected: "
            f"{padded[:5].tolist()}",
        )
    return "never selected"


def best_first(part: Any, candidates: Candidates) -> str:
    """By the scores that the NMS returns, or else by those it got; the best box is kept."""
    output = candidates.run(part)
    for n in range(2):
        kept = selected(output, n)
        scores = output[2][n, : len(kept)] if len(output) == 3 else candidates.scores[n, kept]
        require(
            bool((scores[:-1] >= scores[1:]).all()),
            f"image {n}: scores are {[round(score, 2) for score in scores[:6].tolist()]}",
        )
        best = int(candidates.scores[n].argmax())
        require(best in kept.tolist(), f"image {n}: the best box, {best}, is not selected")
    return ""


def few_candidates(part: Any, candidates: Candidates) -> str:
    """One candidate, and more entries than candidates."""
    for count in (1, 5):
        few = Candidates(*(value[:, :count] for value in candidates))
        output = few.run(part)
        require_tensor(output[0], f"indices of {count} candidates", (3, MAX_OUT), torch.int64)
        require(
            bool((output[1] <= (few.scores > -torch.inf).sum(1)).all()),
            f"counts are {output[1].tolist()} for {count} candidates",
        )
        require(
            bool((output[0] >= 0).all() and (output[0] < count).all()),
            f"indices of {count} candidates are {output[0].min()} to {output[0].max()}",
        )
    return f"1 and 5 candidates for {MAX_OUT} entries"


def images_alone(part: Any, candidates: Candidates) -> str:
    """An image has the result that it has without the others."""
    together = candidates.run(part)
    for n in range(3):
        alone = candidates.of_image(n).run(part)
        require_equal(selected(alone, 0), selected(together, n), f"image {n} alone")
    return "batches of 3 and 1 agree"


def groups(part: Any, candidates: Candidates) -> str:
    """Stated: NMS of all classes together is a choice."""
    two = Candidates(
        torch.tensor([[[10.0, 10, 50, 50], [10, 10, 50, 50]]]),
        torch.tensor([[0.9, 0.8]]),
        torch.tensor([[0, 1]]),
    )
    one_group = int(two._replace(groups=torch.zeros_like(two.groups)).run(part)[1])
    return f"of two equal boxes it keeps {one_group} in one group, {int(two.run(part)[1])} in two"
