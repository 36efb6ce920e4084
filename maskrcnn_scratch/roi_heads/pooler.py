"""RoIAlign on a feature pyramid: each RoI is pooled from the level that fits its size.

Shapes: see ``structures``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from maskrcnn_scratch.ops import fpn_levels, multiscale_roi_align
from maskrcnn_scratch.structures import list_to_rois


class MultiScaleRoIAlign(nn.Module):
    """Features of one size for boxes of all sizes (FPN, Eq. 1; Mask R-CNN, section 3, RoIAlign).

    Args:
        featmap_names: names of the feature maps to pool from, finest first. Names that the backbone
            does not give are ignored, as in torchvision.
        output_size: ``S``, the side of the pooled features, or (height, width).
        sampling_ratio: samples per bin along each side; 0 or less for one per pixel of the bin.
        canonical_scale: side in pixels of a box that is pooled from ``canonical_level``.
        canonical_level: 4 is the level of stride 16.
        scales: feature pixels per image pixel of each map; by default inferred from the sizes.
        aligned: the centre of the first pixel is 0.5 instead of 0; see ``Conventions``.
        channels_last: memory format of the result: true for convolutions, false for linear layers.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        scales: Sequence[float] | None = None,
        aligned: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.featmap_names = list(featmap_names)
        height, width = (output_size,) * 2 if isinstance(output_size, int) else output_size
        self.output_size = (height, width)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.scales = scales
        self.aligned = aligned
        self.channels_last = channels_last

    def forward(
        self,
        x: Mapping[str, Tensor],
        boxes: Tensor | Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Pools each box from one level.

        Args:
            x: ``[N, F, H_l, W_l]`` by name.
            boxes: ``[R, 5]`` (image index, x1, y1, x2, y2) in image pixels, or a list with
                ``[R_n, 4]`` per image.
            image_shapes: (height, width) of the images; the scales are inferred from the largest
                height. With the padded size they are exact. (torchvision passes sizes without
                padding and keeps the scales of its first batch, which can be wrong for an image
                that is much smaller than its padding.)

        Returns:
            ``[R, F, S, S]``, in the order of the boxes.

        Raises:
            ValueError: none of the named feature maps is there.
        """
        features = [x[name] for name in self.featmap_names if name in x]
        if not features:
            raise ValueError(
                f"featmap_names asks for {self.featmap_names}, the backbone gives {list(x)}: none "
                "of them is there"
            )
        rois = boxes if isinstance(boxes, Tensor) else list_to_rois(boxes)
        scales = self.scales or infer_scales(features, image_shapes)
        return multiscale_roi_align(
            features,
            rois,
            self.map_levels(rois[:, 1:], scales),
            scales,
            self.output_size,
            self.sampling_ratio,
            self.aligned,
            self.channels_last,
        )

    def map_levels(self, boxes: Tensor, scales: Sequence[float]) -> Tensor:
        """Index of the level for each of ``boxes [R, 4]``, int64 ``[R]``.

        Level ``k = floor(k0 + log2(sqrt(w h) / 224))`` (FPN, Eq. 1), with ``k0`` for
        ``canonical_level`` and 224 for ``canonical_scale``; the finest is index 0.
        """
        if len(scales) == 1:
            return torch.zeros(boxes.shape[0], dtype=torch.int64, device=boxes.device)
        finest, coarsest = (-int(math.log2(scale)) for scale in (scales[0], scales[-1]))
        coarsest = min(coarsest, finest + len(scales) - 1)  # where a level between is missing
        return fpn_levels(boxes, finest, coarsest, self.canonical_scale, self.canonical_level)

    def __prepare_scriptable__(self) -> NoReturn:  # called by torch.jit.script
        raise TypeError(
            "TorchScript is not supported: use maskrcnn_scratch.export for ONNX and torch.export"
        )

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}"
        )


def infer_scales(
    features: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
) -> list[float]:
    """Feature pixels per image pixel of each map, rounded to a power of two."""
    height = max(shape[0] for shape in image_shapes)
    return [2.0 ** round(math.log2(feature.shape[-2] / height)) for feature in features]
