"""Parts of our model that ``--replace`` exchanges, to see which checks that changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from maskrcnn_scratch.backbone import FrozenBatchNorm2d
from maskrcnn_scratch.faster_rcnn import FasterRCNN
from maskrcnn_scratch.inspect.settings import set_at
from maskrcnn_scratch.parity.compare import Check
from maskrcnn_scratch.parity.losses import (
    LOSS_TOLERANCE,
    Batch,
    both_losses,
    loss_check,
    trainable_maskrcnn,
    training_reference,
)
from maskrcnn_scratch.user_code import build_part, errors_in_one_line, find_part

Model = TypeVar("Model", bound=FasterRCNN)


@dataclass(frozen=True)
class Replacements:
    """Custom parts, by their path in the model.

    Args:
        options: ``PATH=FILE.py:NAME`` each, as in ``roi_heads.nms=my.py:soft_nms``. A class, or a
            function without required parameters, is called for the part.

    Raises:
        ValueError: an option of another form.
    """

    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in self.options:
            path, _, part = option.partition("=")
            if not path or not part:
                raise ValueError(
                    f"--replace {option}: give it as PATH=FILE.py:NAME, as in "
                    "roi_heads.nms=my.py:soft_nms"
                )

    def __bool__(self) -> bool:
        return bool(self.options)

    def applied_to(self, model: Model) -> Model:
        """A copy of the model with the parts; the model itself if there are none.

        Raises:
            PartNotFoundError, UserCodeError: there is no such part, or it cannot be built.
            ValueError: the model has no such path, or it cannot hold the part.
        """
        if not self.options:
            return model
        changed = copy.deepcopy(model)
        for option in self.options:
            path, _, reference = option.partition("=")
            with errors_in_one_line(reference):
                part: Any = build_part(find_part(reference), {})
            set_at(changed, path, partial(_instead, part), f"--replace {option}")
        example = next(model.parameters())
        return changed.to(example.device, example.dtype).train(model.training)


def _instead(part: Any, _: Any) -> Any:
    return part


def replaced_losses_checks(replacements: Replacements, batches: Sequence[Batch]) -> Iterator[Check]:
    """The losses of the model of the paper with and without the replaced parts."""
    images, _ = batches[0]
    model = trainable_maskrcnn(FrozenBatchNorm2d, images[0].cpu()).to(images[0].device)
    reference = training_reference(model)
    changed = replacements.applied_to(model)
    for images, targets in batches:
        name = f"FrozenBatchNorm2d, {len(targets[0]['boxes'])} objects"
        before, after = (
            loss_check(name, *both_losses(each, reference, images, targets), LOSS_TOLERANCE)
            for each in (model, changed)
        )
        yield replace(after, before=before)
