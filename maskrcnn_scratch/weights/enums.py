"""The published weights: the address of each file, its input transform and its metrics.

Names, members, addresses and metrics are torchvision's (``torchvision/models/_api.py`` and the
model files beside it): ``weights=MaskRCNN_ResNet50_FPN_Weights.COCO_V1`` is the same file in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from maskrcnn_scratch.weights.categories import COCO_CATEGORIES, IMAGENET_CATEGORIES
from maskrcnn_scratch.weights.download import download_weights, hash_in_name, sha256_of
from maskrcnn_scratch.weights.presets import ImageClassification, ObjectDetection
from maskrcnn_scratch.weights.state_dict import read_state_dict

__all__ = [
    "FasterRCNN_ResNet50_FPN_V2_Weights",
    "FasterRCNN_ResNet50_FPN_Weights",
    "MaskRCNN_ResNet50_FPN_V2_Weights",
    "MaskRCNN_ResNet50_FPN_Weights",
    "ResNet50_Weights",
    "Weights",
    "WeightsEnum",
]

_E = TypeVar("_E", bound="WeightsEnum")


@dataclass(frozen=True)
class Weights:
    """One published file.

    Attributes:
        url: address of the file; its name ends in the first digits of its SHA-256.
        transforms: returns the preset that turns an image into the model's input.
        meta: categories, num_params, recipe and the published metrics.
    """

    url: str
    transforms: Callable[..., Callable[..., Tensor]]
    meta: dict[str, Any]


class WeightsEnum(Enum):
    """The published weights of one model; ``DEFAULT`` names the best of them."""

    @classmethod
    def verify(cls: type[_E], weights: Any) -> _E | None:
        """The member for a member, its name (``"COCO_V1"``, ``"DEFAULT"``) or its full name.

        A member of torchvision's enum of the same name gives ours; None gives None.

        Raises:
            ValueError: there is no such member.
            TypeError: weights of another model, or another type.
        """
        if weights is None or isinstance(weights, cls):
            return weights
        if type(weights).__name__ == cls.__name__:
            weights = weights.name
        if not isinstance(weights, str):
            raise TypeError(f"weights: expected {cls.__name__}, a name or None, got {weights!r}")
        name = weights.removeprefix(f"{cls.__name__}.")
        if name not in cls.__members__:
            known = ", ".join(cls.__members__)
            raise ValueError(
                f"weights: {cls.__name__} has no member {name!r} (it has {known}; a file is given "
                "as a pathlib.Path)"
            )
        return cls[name]

    def get_state_dict(self, progress: bool = True, check_hash: bool = True) -> dict[str, Tensor]:
        """Its tensors by name, on the CPU; downloaded unless torch.hub's cache folder has the file.

        Raises:
            WeightsError: it cannot be downloaded, or the hash is not the one in its name.
        """
        return read_state_dict(download_weights(self.url, progress=progress, check_hash=check_hash))

    def is_content_of(self, file: Path) -> bool:
        """Whether ``file`` is this published file, under any name: compares the SHA-256."""
        expected = hash_in_name(Path(self.url).name)
        return expected is not None and sha256_of(file).startswith(expected)

    @property
    def url(self) -> str:
        return self.value.url

    @property
    def transforms(self) -> Callable[..., Callable[..., Tensor]]:
        return self.value.transforms

    @property
    def meta(self) -> dict[str, Any]:
        return self.value.meta

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return getattr, (type(self), self.name)  # pickled and copied by name


_MODELS = "https://download.pytorch.org/models"
_REPOSITORY = "https://github.com/pytorch/vision"


def _coco(file: str, *, recipe: str, num_params: int, **metrics: float) -> Weights:
    meta = {
        "categories": COCO_CATEGORIES,
        "min_size": (1, 1),
        "num_params": num_params,
        "recipe": f"{_REPOSITORY}/{recipe}",
        "_metrics": {"COCO-val2017": metrics},
    }
    return Weights(f"{_MODELS}/{file}", ObjectDetection, meta)


def _imagenet(file: str, *, recipe: str, resize_size: int, top1: float, top5: float) -> Weights:
    meta = {
        "categories": IMAGENET_CATEGORIES,
        "min_size": (1, 1),
        "num_params": 25557032,
        "recipe": f"{_REPOSITORY}/{recipe}",
        "_metrics": {"ImageNet-1K": {"acc@1": top1, "acc@5": top5}},
    }
    preset = partial(ImageClassification, crop_size=224, resize_size=resize_size)
    return Weights(f"{_MODELS}/{file}", preset, meta)


class MaskRCNN_ResNet50_FPN_Weights(WeightsEnum):
    COCO_V1 = _coco(
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        recipe="tree/main/references/detection#mask-r-cnn",
        num_params=44401393,
        box_map=37.9,
        mask_map=34.6,
    )
    DEFAULT = COCO_V1


class MaskRCNN_ResNet50_FPN_V2_Weights(WeightsEnum):
    COCO_V1 = _coco(
        "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        recipe="pull/5773",
        num_params=46359409,
        box_map=47.4,
        mask_map=41.8,
    )
    DEFAULT = COCO_V1


class FasterRCNN_ResNet50_FPN_Weights(WeightsEnum):
    COCO_V1 = _coco(
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        recipe="tree/main/references/detection#faster-r-cnn-resnet-50-fpn",
        num_params=41755286,
        box_map=37.0,
    )
    DEFAULT = COCO_V1


class FasterRCNN_ResNet50_FPN_V2_Weights(WeightsEnum):
    COCO_V1 = _coco(
        "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
        recipe="pull/5763",
        num_params=43712278,
        box_map=46.7,
    )
    DEFAULT = COCO_V1


class ResNet50_Weights(WeightsEnum):
    IMAGENET1K_V1 = _imagenet(
        "resnet50-0676ba61.pth",
        recipe="tree/main/references/classification#resnet",
        resize_size=256,
        top1=76.130,
        top5=92.862,
    )
    IMAGENET1K_V2 = _imagenet(
        "resnet50-11ad3fa6.pth",
        recipe="issues/3995#issuecomment-1013906621",
        resize_size=232,
        top1=80.858,
        top5=95.434,
    )
    DEFAULT = IMAGENET1K_V2
