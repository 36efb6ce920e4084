"""Further branches of the RoI heads, beside boxes and masks: see ``stage_interfaces.Branch``.

Shapes: see ``structures``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from maskrcnn_scratch.call_part import with_context
from maskrcnn_scratch.structures import Detections, Result, Target, gather_entries
from maskrcnn_scratch.targets.roi_targets import TrainingSamples

# Fields of a result that a branch can't have; it may replace the scores.
OWN_OUTPUTS = ("boxes", "labels", "masks")


class Branches:
    """What ``RoIHeads``, which inherits it, does with its ``branches``.

    ``self`` is a ``RoIHeads``: mypy allows no other annotation of it than Any.
    """

    def branch_losses(
        self: Any,
        features: Mapping[str, Tensor],
        samples: TrainingSamples,
        targets: Sequence[Target],
        padded_size: tuple[int, int],
        mask_logits: Tensor | None,
    ) -> dict[str, Tensor]:
        """The losses of all branches by name; all of them use the same samples.

        ``mask_logits``: of the sampled objects, for branches that ask for them.
        """
        found: dict[str, Tensor] = {}
        for name, branch in self.branches.items():
            losses_of = with_context(branch.losses, mask_logits=mask_logits)
            losses = losses_of(features, samples, targets, padded_size)
            check_names(f"branch {name!r} returns losses", losses, found)
            found |= losses
        return found

    def detect_branches(
        self: Any,
        features: Mapping[str, Tensor],
        detections: Detections,
        padded_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """The outputs ``[N, D, ...]`` of all branches by name; padding included.

        If a branch gives new ``scores``, ``detections`` and the outputs are sorted by them.

        Raises:
            ValueError: an output with a name that is taken, or without an entry per detection.
        """
        found: dict[str, Tensor] = {}
        for name, branch in self.branches.items():
            outputs = branch.detect(features, detections, padded_size)
            check_names(f"branch {name!r} returns", outputs, (*OWN_OUTPUTS, *found))
            for output, values in outputs.items():
                expected = detections.scores.shape
                if values.shape[:2] != expected:
                    raise ValueError(
                        f"branch {name!r} returns {output!r} {list(values.shape)}: expected "
                        f"[{expected[0]}, {expected[1]}, ...], an entry per detection"
                    )
            found |= outputs
        if "scores" in found:
            sort_by_scores(detections, found)
        return found

    def postprocess_branches(
        self: Any,
        results: list[Result],
        outputs: Mapping[str, Tensor],
        image_sizes: Tensor,
        original_image_sizes: Sequence[tuple[int, int]],
    ) -> list[Result]:
        """Adds ``outputs [N, D, ...]`` to the results, each as its branch's ``postprocess`` says.

        Args:
            results: a dict per image, in the pixels of the original images.
            outputs: from ``detect_branches``.
            image_sizes: (height, width) after the resize, ``[N, 2]``.
            original_image_sizes: (height, width) before the resize, per image.
        """
        results = [
            {
                **result,
                **{name: values[n, : len(result["scores"])] for name, values in outputs.items()},
            }
            for n, result in enumerate(results)
        ]
        for branch in self.branches.values():
            if hasattr(branch, "postprocess"):
                results = [
                    branch.postprocess(result, size, original)
                    for result, size, original in zip(
                        results, image_sizes, original_image_sizes, strict=True
                    )
                ]
        return results


def outputs_of_branches(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the branches have added to the result of an image."""
    return {name: value for name, value in result.items() if name not in (*OWN_OUTPUTS, "scores")}


def warn_of_lost_outputs(result: Mapping[str, Any], where: str) -> None:
    """Warns that outputs of branches are lost, and names them.

    Args:
        result: of an image, with the outputs of branches.
        where: the beginning of a sentence that ends in "no keypoints", such as "COCO results have".
    """
    if lost := outputs_of_branches(result):
        warnings.warn(
            f"outputs of branches are lost: {where} no {', '.join(sorted(lost))}", stacklevel=3
        )


def sort_by_scores(detections: Detections, outputs: dict[str, Tensor]) -> None:
    """Replaces the scores by ``outputs["scores"] [N, D]``, and sorts all by them in place.

    Padding stays behind the valid entries. ``outputs`` loses its scores.
    """
    valid = detections.valid  # [N, D]
    detections.scores = outputs.pop("scores").where(valid, 0)
    # Not argsort, which ONNX has no operator for.
    order = detections.scores.where(valid, -1).topk(valid.shape[1], dim=1).indices  # [N, D]
    for values in (vars(detections), outputs):
        for name, value in values.items():
            if value is not None and name != "counts":
                values[name] = gather_entries(value, order)


def check_names(what: str, names: Iterable[str], taken: Iterable[str]) -> None:
    """Raises a ValueError if one of ``names`` is ``taken``."""
    twice = sorted(set(names) & set(taken))
    if twice:
        raise ValueError(f"{what} {', '.join(map(repr, twice))}: the name is taken")
