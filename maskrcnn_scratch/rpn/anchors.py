"""Anchors: the reference boxes that the RPN classifies and refines (Faster R-CNN, section 3.1.1).

Shapes: see ``structures``; ``A`` is the sum of ``H_l * W_l * a`` over the levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch.structures import ImageList

CACHED_GRIDS = 16  # padded sizes; 4.3 MB of anchors each at 800 x 1344


class AnchorGenerator(nn.Module):
    """Boxes of several sizes and aspect ratios at each location of each feature map.

    The anchors of location (y, x) are centred at the pixel ``(x * stride, y * stride)``.

    Args:
        sizes: square roots of the areas in pixels per level, such as ``((32,), (64,), ...)``; or
            one number per level, ``(32, 64, ...)``.
        aspect_ratios: height / width per level; or one sequence for all levels.
        strides: pixels between locations per level; see ``Conventions.anchor_strides``.
        rounded: see ``Conventions.round_anchors``.
        ratios_fastest: see ``Conventions.ratios_fastest``.

    Raises:
        ValueError: the arguments are for different numbers of levels.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]] | Sequence[float] = ((128, 256, 512),),
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float] = ((0.5, 1.0, 2.0),),
        *,
        strides: Sequence[int] | None = None,
        rounded: bool = True,
        ratios_fastest: bool = False,
    ) -> None:
        super().__init__()
        self.sizes: tuple[tuple[float, ...], ...] = tuple(
            tuple(size) if isinstance(size, Sequence) else (size,) for size in sizes
        )
        shared = not isinstance(aspect_ratios[0], Sequence)
        per_level: Any = [aspect_ratios] * len(self.sizes) if shared else aspect_ratios
        self.aspect_ratios: tuple[tuple[float, ...], ...] = tuple(map(tuple, per_level))
        if len(self.sizes) != len(self.aspect_ratios):
            raise ValueError(
                f"sizes has {len(self.sizes)} levels and aspect_ratios {len(self.aspect_ratios)}: "
                "pass both for each feature map"
            )
        if strides is not None and len(strides) != len(self.sizes):
            raise ValueError(f"strides has {len(strides)} levels and sizes {len(self.sizes)}")
        self.strides = strides
        self.ratios_fastest = ratios_fastest
        self.cell_anchors = [
            anchors_of_location(level_sizes, ratios, rounded, ratios_fastest)
            for level_sizes, ratios in zip(self.sizes, self.aspect_ratios, strict=True)
        ]
        self._cache: dict[tuple[object, ...], Tensor] = {}

    def num_anchors_per_location(self) -> list[int]:
        """Anchors per location, ``a``, of each level."""
        return [len(anchors) for anchors in self.cell_anchors]

    def forward(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors ``[A, 4]`` per image: the same tensor for all, as they share the padded size.

        They are ordered by level, row, column, aspect ratio, size. The anchors of the last
        ``CACHED_GRIDS`` padded sizes are cached.

        Args:
            image_list: its ``tensors [N, 3, H, W]`` give padded size, dtype and device.
            feature_maps: ``[N, F, H_l, W_l]`` of each level; only their sizes are used.

        Raises:
            ValueError: the number of feature maps differs from the number of levels.
        """
        if len(feature_maps) != len(self.cell_anchors):
            raise ValueError(
                f"the backbone returns {len(feature_maps)} feature maps, the anchor generator has "
                f"sizes and aspect_ratios for {len(self.cell_anchors)}: they must agree"
            )
        height, width = image_list.tensors.shape[-2:]
        grids = [(feature.shape[-2], feature.shape[-1]) for feature in feature_maps]
        like = image_list.tensors  # feature maps may have lower precision
        anchors: Tensor | None
        if torch.compiler.is_compiling():  # sizes may be symbols, which cannot be keys
            anchors = self.grid_anchors(grids, height, width, like)
        else:
            key = (height, width, *grids, like.dtype, like.device)
            anchors = self._cache.get(key)  # other threads may use the cache, too
            if anchors is None:
                anchors = self._cache[key] = self.grid_anchors(grids, height, width, like)
                while len(self._cache) > CACHED_GRIDS:
                    oldest, *_ = self._cache
                    self._cache.pop(oldest, None)
        return [anchors] * image_list.tensors.shape[0]

    def grid_anchors(
        self, grids: Sequence[tuple[int, int]], height: int, width: int, like: Tensor
    ) -> Tensor:
        """Anchors ``[A, 4]`` of all levels.

        Args:
            grids: (height, width) of each feature map.
            height, width: padded size.
            like: a tensor with the dtype and device of the result.
        """
        if self.strides is None:
            steps = [(height // grid_h, width // grid_w) for grid_h, grid_w in grids]
        else:
            steps = [(stride, stride) for stride in self.strides]
        levels = []
        for (grid_h, grid_w), (step_y, step_x), cell_anchors in zip(
            grids, steps, self.cell_anchors, strict=True
        ):
            x = torch.arange(grid_w, device=like.device) * step_x
            y = torch.arange(grid_h, device=like.device) * step_y
            y, x = torch.meshgrid(y, x, indexing="ij")  # [H_l, W_l] each
            centres = torch.stack((x, y, x, y), dim=-1)[:, :, None]  # [H_l, W_l, 1, 4]
            anchors = centres + cell_anchors.to(like, non_blocking=True)  # [H_l, W_l, a, 4]
            levels.append(anchors.reshape(-1, 4))
        return torch.cat(levels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # copies and pickles have no cache

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, aspect_ratios={self.aspect_ratios}"


def anchors_of_location(
    sizes: Sequence[float],
    aspect_ratios: Sequence[float],
    rounded: bool = True,
    ratios_fastest: bool = False,
) -> Tensor:
    """The anchors of one location, centred at the origin: ``[a, 4]``, by aspect ratio, then size.

    ``rounded``, ``ratios_fastest``: see ``Conventions``.
    """
    # On the CPU: on the meta device, a square root makes PyTorch import its compiler.
    scale = torch.tensor(sizes, dtype=torch.float32, device="cpu")
    height_ratio = torch.tensor(aspect_ratios, dtype=torch.float32, device="cpu").sqrt()
    width_ratio = 1 / height_ratio
    height, width = height_ratio[:, None] * scale, width_ratio[:, None] * scale  # [ratios, sizes]
    if ratios_fastest:
        height, width = height.t(), width.t()
    height, width = height.flatten(), width.flatten()  # [a]
    anchors = torch.stack((-width, -height, width, height), dim=1) / 2
    return anchors.round() if rounded else anchors
