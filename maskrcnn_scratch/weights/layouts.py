"""Parameter names of the same network in other libraries, and conversion to and from torchvision's.

Our layout is torchvision's. Every other layout is a renaming of it; a few tensors are also
rearranged, where a library orders colours or classes differently.

    torchvision      maskrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn and their _v2
    torchvision-old  the same in torchvision 0.12 and earlier, before convolutions became blocks
    detectron2       mask_rcnn_R_50_FPN and faster_rcnn_R_50_FPN
    resnet50         torchvision's ImageNet classifier; only the backbone of a detector
    timm             timm's resnet50: the same names as torchvision's
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from maskrcnn_scratch.weights.errors import WeightsError

__all__ = [
    "BODY",
    "LAYOUTS",
    "Layout",
    "detect_layout",
    "first_three",
    "upgrade_keys",
    "without_counters",
]

StateDict = Mapping[str, Tensor]
_T = TypeVar("_T")
BODY = "backbone.body."


@dataclass(frozen=True)
class Layout:
    """A naming of the parameters.

    Attributes:
        matches: whether keys are in this layout; looks for a key that no other layout has.
        to_torchvision: converts a state dict of this layout to torchvision's; raises WeightsError
            for a name that the layout does not have.
        from_torchvision: the reverse.
    """

    matches: Callable[[Collection[str]], bool]
    to_torchvision: Callable[[StateDict], dict[str, Tensor]]
    from_torchvision: Callable[[StateDict], dict[str, Tensor]]


def detect_layout(keys: Collection[str]) -> str | None:
    """The name of the layout that the keys are in, or None if it is not in ``LAYOUTS``."""
    return next((name for name, layout in LAYOUTS.items() if layout.matches(keys)), None)


def _rename(state_dict: StateDict, modules: Mapping[str, str]) -> dict[str, Tensor]:
    """Renames the module of each parameter; raises a WeightsError if one has no new name."""
    modules_of = {key: key.rpartition(".")[0] for key in state_dict}
    unknown = [key for key, module in modules_of.items() if module not in modules]
    if unknown:
        raise WeightsError(f"{len(unknown)} keys are not in that layout: {first_three(unknown)}")
    return {
        modules[modules_of[key]] + key.removeprefix(modules_of[key]): tensor
        for key, tensor in state_dict.items()
    }


def first_three(names: Collection[str]) -> str:
    """The first three names, followed by an ellipsis if there are more."""
    return ", ".join([*names][:3]) + (", ..." if len(names) > 3 else "")


# --- torchvision, old names ---


def _old_modules() -> Iterator[tuple[str, str]]:
    """Pairs of the old and the current name of each renamed module."""
    for level in range(4):
        for block in ("inner_blocks", "layer_blocks"):
            yield f"backbone.fpn.{block}.{level}", f"backbone.fpn.{block}.{level}.0"
    yield "rpn.head.conv", "rpn.head.conv.0.0"
    for i in range(4):
        yield f"roi_heads.mask_head.mask_fcn{i + 1}", f"roi_heads.mask_head.{i}.0"


_UPGRADES = dict(_old_modules())


def upgrade_keys(state_dict: StateDict) -> dict[str, Tensor]:
    """Renames old torchvision keys to the current ones; other keys stay unchanged."""
    modules = {module: module for module in _modules(state_dict)} | _UPGRADES
    return _rename(state_dict, modules)


def _downgrade_keys(state_dict: StateDict) -> dict[str, Tensor]:
    new_modules = ("roi_heads.box_head.0.", "rpn.head.conv.1.")
    if new := [key for key in state_dict if key.startswith(new_modules)]:
        raise WeightsError(f"the old layout has no _v2 models, and so no {first_three(new)}")
    modules = {module: module for module in _modules(state_dict)} | _inverse(_UPGRADES)
    return _rename(state_dict, modules)


def _modules(keys: Collection[str]) -> set[str]:
    return {key.rpartition(".")[0] for key in keys}


def _inverse(modules: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in modules.items()}


# --- detectron2 ---


def _detectron2_modules() -> Iterator[tuple[str, str]]:
    """Pairs of detectron2's and torchvision's name of each module."""
    yield f"{_BOTTOM_UP}stem.conv1", f"{BODY}conv1"
    yield f"{_BOTTOM_UP}stem.conv1.norm", f"{BODY}bn1"
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            theirs, ours = f"{_BOTTOM_UP}res{stage + 1}.{block}", f"{BODY}layer{stage}.{block}"
            for i in (1, 2, 3):
                yield f"{theirs}.conv{i}", f"{ours}.conv{i}"
                yield f"{theirs}.conv{i}.norm", f"{ours}.bn{i}"
            if block == 0:
                yield f"{theirs}.shortcut", f"{ours}.downsample.0"
                yield f"{theirs}.shortcut.norm", f"{ours}.downsample.1"
    for level in range(4):
        yield f"backbone.fpn_lateral{level + 2}", f"backbone.fpn.inner_blocks.{level}.0"
        yield f"backbone.fpn_output{level + 2}", f"backbone.fpn.layer_blocks.{level}.0"
    yield "proposal_generator.rpn_head.conv", "rpn.head.conv.0.0"
    yield "proposal_generator.rpn_head.objectness_logits", "rpn.head.cls_logits"
    yield "proposal_generator.rpn_head.anchor_deltas", "rpn.head.bbox_pred"
    yield "roi_heads.box_head.fc1", "roi_heads.box_head.fc6"
    yield "roi_heads.box_head.fc2", "roi_heads.box_head.fc7"
    yield "roi_heads.box_predictor.cls_score", _CLASSES
    yield "roi_heads.box_predictor.bbox_pred", _BOXES
    for i in range(4):
        yield f"roi_heads.mask_head.mask_fcn{i + 1}", f"roi_heads.mask_head.{i}.0"
    yield "roi_heads.mask_head.deconv", "roi_heads.mask_predictor.conv5_mask"
    yield "roi_heads.mask_head.predictor", _MASKS


_BOTTOM_UP = "backbone.bottom_up."
_STEM = f"{BODY}conv1"
_CLASSES = "roi_heads.box_predictor.cls_score"
_BOXES = "roi_heads.box_predictor.bbox_pred"
_MASKS = "roi_heads.mask_predictor.mask_fcn_logits"
_DETECTRON2 = dict(_detectron2_modules())

# Constants that older files store beside the weights.
_CONSTANTS = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.")


def _from_detectron2(state_dict: StateDict) -> dict[str, Tensor]:
    """BGR to RGB; the background from the last row to the first.

    detectron2 has no box deltas and no mask for the background: those rows are zero here, and no
    output depends on them.
    """
    kept = {key: t for key, t in state_dict.items() if not key.startswith(_CONSTANTS)}
    return _arrange(
        _rename(without_counters(kept), _DETECTRON2),
        {
            _STEM: lambda t: t.flip(1),  # [64, 3, 7, 7]
            _CLASSES: lambda t: t.roll(1, dims=0),  # [C, ...]
            _BOXES: lambda t: torch.cat([torch.zeros_like(t[:4]), t]),  # [4 * C, ...]
            _MASKS: lambda t: torch.cat([torch.zeros_like(t[:1]), t]),  # [C, ...]
        },
    )


def _to_detectron2(state_dict: StateDict) -> dict[str, Tensor]:
    arranged = _arrange(
        without_counters(state_dict),
        {
            _STEM: lambda t: t.flip(1),
            _CLASSES: lambda t: t.roll(-1, dims=0),
            _BOXES: lambda t: t[4:],
            _MASKS: lambda t: t[1:],
        },
    )
    return _rename(arranged, _inverse(_DETECTRON2))


def _arrange(
    state_dict: StateDict, by_module: Mapping[str, Callable[[Tensor], Tensor]]
) -> dict[str, Tensor]:
    return {
        key: by_module.get(key.rpartition(".")[0], lambda t: t)(tensor)
        for key, tensor in state_dict.items()
    }


def without_counters(state_dict: Mapping[str, _T]) -> dict[str, _T]:
    """Drops the batch counters of BatchNorm2d, on which no output depends."""
    return {key: t for key, t in state_dict.items() if not key.endswith("num_batches_tracked")}


# --- ImageNet ResNet-50 ---


def _from_resnet50(state_dict: StateDict) -> dict[str, Tensor]:
    return {f"{BODY}{key}": t for key, t in state_dict.items() if not key.startswith("fc.")}


def _to_resnet50(state_dict: StateDict) -> dict[str, Tensor]:
    return {k.removeprefix(BODY): t for k, t in state_dict.items() if k.startswith(BODY)}


_RESNET50 = Layout(lambda keys: "layer1.0.conv1.weight" in keys, _from_resnet50, _to_resnet50)
LAYOUTS = {
    "torchvision-old": Layout(
        lambda keys: "rpn.head.conv.weight" in keys, upgrade_keys, _downgrade_keys
    ),
    "torchvision": Layout(lambda keys: f"{_STEM}.weight" in keys, upgrade_keys, dict),
    "detectron2": Layout(
        lambda keys: f"{_BOTTOM_UP}stem.conv1.weight" in keys, _from_detectron2, _to_detectron2
    ),
    "resnet50": _RESNET50,
    "timm": _RESNET50,
}
