"""Loading weights into a model: everything that fits, and a report of what does not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskrcnn_scratch.weights.errors import WeightsError
from maskrcnn_scratch.weights.identify import nearest_model
from maskrcnn_scratch.weights.layouts import BODY, detect_layout, first_three, upgrade_keys

__all__ = ["LoadReport", "inflate_stem", "load_pretrained"]

_STEM = f"{BODY}conv1.weight"
_PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.")


@dataclass(frozen=True)
class LoadReport:
    """Which parameters were loaded.

    Attributes:
        loaded: keys whose values now come from the weights.
        inflated: those of them that were adapted to another number of input channels.
        skipped: predictor parameters that were not loaded, and why.
    """

    loaded: list[str]
    inflated: list[str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        if self.inflated:
            parts.append(f"adapted to the model's input channels: {', '.join(self.inflated)}")
        if self.skipped:
            listed = (f"{key} ({why})" for key, why in self.skipped.items())
            parts.append(f"not loaded: {', '.join(listed)}")
        return "; ".join(parts)


def load_pretrained(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str = "weights"
) -> LoadReport:
    """Loads weights that may have another number of classes or of input channels.

    Parameters of the box and mask predictors whose shapes differ are skipped: they keep their
    values, which in a new model is the random initialisation. All other names and shapes must
    agree; only the first convolution is adapted to the number of input channels
    (``inflate_stem``). A warning lists what was skipped or adapted.

    Args:
        model: with torchvision's parameter names.
        state_dict: with torchvision's names, current or old.
        source: what messages call the weights, such as the file's name.

    Raises:
        WeightsError: keys or shapes of another model; the message names the nearest model and the
            first differences.
    """
    theirs, ours = upgrade_keys(state_dict), model.state_dict()
    _check_keys(theirs, ours, source)
    inflated, skipped = [], {}
    if _STEM in ours and _other_channels(theirs[_STEM], ours[_STEM]):
        theirs[_STEM] = inflate_stem(theirs[_STEM], ours[_STEM].shape[1])
        inflated.append(_STEM)
    for key in ours:
        given = list(theirs[key].shape) if key in theirs else None
        if given == list(ours[key].shape) or (given is None and not _is_predictor(key)):
            continue
        why = f"{list(ours[key].shape)} in the model, {given or 'missing'} in the weights"
        if not _is_predictor(key):
            raise WeightsError(f"{source}: {key} has the wrong shape: {why}")
        skipped[key] = why
    fitting = {key: t for key, t in theirs.items() if key in ours and key not in skipped}
    warn_of_values(fitting, source)
    model.load_state_dict(fitting, strict=False)
    report = LoadReport(list(fitting), inflated, skipped)
    if skipped or inflated:
        warnings.warn(f"{source}: {report}", stacklevel=2)
    return report


def load_backbone(body: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads an ImageNet classifier into a ResNet with any number of input channels.

    The classifier's last layer is ignored.

    Raises:
        WeightsError: names or shapes of another network.
    """
    tensors = {key: t for key, t in state_dict.items() if not key.startswith("fc.")}
    stem = tensors.get("conv1.weight")
    ours = body.state_dict()["conv1.weight"]
    if stem is not None and _other_channels(stem, ours):
        tensors["conv1.weight"] = inflate_stem(stem, ours.shape[1])
    warn_of_values(tensors, "backbone weights")
    try:
        body.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"weights of another backbone: {' '.join(str(error).split())}") from None


def check_same_shapes(expected: Mapping[str, Tensor], weights: Mapping[str, object]) -> None:
    """Raises a ValueError unless ``weights`` has the keys, shapes and types of ``expected``."""
    for key in [*expected, *weights]:
        if key not in expected:
            raise ValueError(f"{key} is not a parameter of the model")
        here, there = (
            f"{t.dtype} {list(t.shape)}" if isinstance(t, Tensor) else f"a {type(t).__name__}"
            for t in (expected[key], weights.get(key))
        )
        if here != there:
            raise ValueError(f"{key} should be {here}, not {there}")


def warn_of_values(state_dict: Mapping[str, Tensor], source: object) -> None:
    """One warning, which names the first tensor, where weights hold NaN or infinite values."""
    broken = [
        key for key, t in state_dict.items() if t.is_floating_point() and not t.isfinite().all()
    ]
    if broken:
        more = f" and {len(broken) - 1} more tensors" * (len(broken) > 1)
        warnings.warn(f"{source}: NaN or infinite values in {broken[0]}{more}", stacklevel=3)


def inflate_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Adapts a first convolution for RGB images to ``in_channels`` channels.

    With four or more channels, the first three keep their filters and the others get the mean
    filter. With one or two, all get the mean filter. All are scaled by ``3 / in_channels``: an
    image with the same values in every channel then gives the same response as before.

    Args:
        weight: ``[F, 3, 7, 7]``.

    Returns:
        ``[F, in_channels, 7, 7]``.
    """
    if in_channels == weight.shape[1]:
        return weight
    mean = weight.mean(dim=1, keepdim=True)  # [F, 1, 7, 7]
    kept = weight if in_channels >= weight.shape[1] else weight[:, :0]
    filled = mean.expand(-1, in_channels - kept.shape[1], -1, -1)
    return torch.cat([kept, filled], dim=1) * (weight.shape[1] / in_channels)


def _other_channels(theirs: Tensor, ours: Tensor) -> bool:
    """Whether two first convolutions, ``[O, F, k, k]``, differ in their input channels alone."""
    if theirs.dim() != 4 or theirs.numel() == 0 or not theirs.is_floating_point():
        return False
    return theirs.shape[1] != ours.shape[1] and theirs.shape[2:] == ours.shape[2:]


def _is_predictor(key: str) -> bool:
    return key.startswith(_PREDICTORS)


def _check_keys(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], source: str) -> None:
    """Raises a WeightsError unless all names outside the predictors agree."""

    def must_agree(keys: Mapping[str, Tensor]) -> list[str]:
        return [
            key
            for key in keys
            if not _is_predictor(key) and not key.endswith("num_batches_tracked")
        ]

    missing = [f"missing {key}" for key in must_agree(ours) if key not in theirs]
    unexpected = [f"unexpected {key}" for key in must_agree(theirs) if key not in ours]
    if not missing and not unexpected:
        return
    layout = detect_layout(theirs)
    if layout not in (None, "torchvision"):
        hint = f"they are in the layout of {layout} (see maskrcnn weights convert)"
    else:
        match = nearest_model(theirs)
        hint = f"they are {match}" if match.exact else str(match)
    raise WeightsError(
        f"{source}: the keys are not those of this model ({first_three(missing + unexpected)}): "
        f"{hint}"
    )
