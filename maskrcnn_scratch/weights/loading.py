"""Getting weights into a model: all that fits, and a word on what does not."""

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
    """What became of the weights.

    Attributes:
        loaded: keys whose values are now the file's.
        inflated: of these, the first convolution if it was fitted to another number of channels.
        skipped: parameters of the predictors that the model keeps, and why.
    """

    loaded: list[str]
    inflated: list[str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        if self.inflated:
            parts.append(f"fitted to the model's input channels: {', '.join(self.inflated)}")
        if self.skipped:
            listed = (f"{key} ({why})" for key, why in self.skipped.items())
            parts.append(f"left as they were: {', '.join(listed)}")
        return "; ".join(parts)


def load_pretrained(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str = "weights"
) -> LoadReport:
    """Loads weights that may be of another number of classes or of input channels.

    The box and mask predictors keep what does not fit them: in a new model, its random
    initialisation. Everything else must fit, name by name and shape by shape, except that the first
    convolution takes any number of channels (``inflate_stem``). A warning lists what was skipped.

    Args:
        state_dict: torchvision's names, old ones too.
        source: what messages call it, such as the file's name.

    Raises:
        WeightsError: keys of another model; the message has the nearest and the first differences.
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
        why = f"{list(ours[key].shape)} here, {given or 'nothing'} there"
        if not _is_predictor(key):
            raise WeightsError(f"{source}: {key} has another shape: {why}")
        skipped[key] = why
    fitting = {key: t for key, t in theirs.items() if key in ours and key not in skipped}
    warn_of_values(fitting, source)
    model.load_state_dict(fitting, strict=False)
    report = LoadReport(list(fitting), inflated, skipped)
    if skipped or inflated:
        warnings.warn(f"{source}: {report}", stacklevel=2)
    return report


def load_backbone(body: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads an ImageNet classifier into a ResNet of any number of input channels.

    Raises:
        WeightsError: the names or shapes are another network's.
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


def warn_of_values(state_dict: Mapping[str, Tensor], source: object) -> None:
    """One warning, which names the first tensor, where weights hold NaN or infinite values."""
    broken = [
        key for key, t in state_dict.items() if t.is_floating_point() and not t.isfinite().all()
    ]
    if broken:
        more = f" and {len(broken) - 1} more tensors" * (len(broken) > 1)
        warnings.warn(f"{source}: NaN or infinite values in {broken[0]}{more}", stacklevel=3)


def inflate_stem(weight: Tensor, in_channels: int) -> Tensor:
    """A first convolution for RGB, ``[O, 3, k, k]``, fitted to other channels, ``[O, C, k, k]``.

    The first three of four or more channels keep their filters and the rest get the mean filter;
    fewer than three all get the mean. The whole is scaled by ``3 / C``, so that an image with the
    same values in every channel gives the response it gave before.
    """
    if in_channels == weight.shape[1]:
        return weight
    mean = weight.mean(dim=1, keepdim=True)  # [O, 1, k, k]
    kept = weight if in_channels >= weight.shape[1] else weight[:, :0]
    filled = mean.expand(-1, in_channels - kept.shape[1], -1, -1)
    return torch.cat([kept, filled], dim=1) * (weight.shape[1] / in_channels)


def _other_channels(theirs: Tensor, ours: Tensor) -> bool:
    """Whether two first convolutions, ``[O, C, k, k]``, differ in their input channels alone."""
    if theirs.dim() != 4 or theirs.numel() == 0 or not theirs.is_floating_point():
        return False
    return theirs.shape[1] != ours.shape[1] and theirs.shape[2:] == ours.shape[2:]


def _is_predictor(key: str) -> bool:
    return key.startswith(_PREDICTORS)


def _check_keys(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], source: str) -> None:
    """Raises a WeightsError unless the names agree, the predictors' aside."""

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
        f"{source}: the keys are not this model's ({first_three(missing + unexpected)}): {hint}"
    )
