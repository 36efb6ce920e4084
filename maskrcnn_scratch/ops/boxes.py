"""Box geometry: the only home of areas, IoU, clipping and the box coder.

Boxes are ``xyxy`` in pixels, half-open: width is ``x2 - x1``. Shapes are written ``[..., 4]``
where any number of leading (batch) dimensions is fine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Decoding multiplies a box's side by exp(d); d is cut off here so that a wild prediction
# cannot overflow (a 16-pixel anchor grows to 1000 pixels at the most).
BBOX_XFORM_CLIP = math.log(1000.0 / 16)


def box_area(boxes: Tensor) -> Tensor:
    """Areas of ``boxes [..., 4]``, ``[...]``; negative where exactly one side is."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of each pair: ``[N, 4]``, ``[M, 4]`` -> ``[N, M]``.

    Two boxes without area give NaN (0 / 0), as in ``torchvision.ops.box_iou``. Each step rounds
    on its own, so that equality tests on IoU (low-quality matches) agree with torchvision's.
    """
    left1, top1, right1, bottom1 = boxes1.t()[..., None]  # each [N, 1]
    left2, top2, right2, bottom2 = boxes2.t().contiguous()[:, None]  # each [1, M], vectorises
    width = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)  # [N, M]
    height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    intersection = width * height
    union = box_area(boxes1)[:, None] + box_area(boxes2)[None, :] - intersection
    return intersection / union


def clip_boxes_to_image(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Moves corners into the image: x to ``[0, width]``, y to ``[0, height]``.

    Args:
        boxes: ``[..., 4]``.
        size: ``(height, width)`` of the one image, or a tensor ``[N, 2]`` of such sizes for
            ``boxes [N, ..., 4]``.
    """
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)  # (x1, y1), (x2, y2)
    if isinstance(size, Tensor):
        limits = size.to(boxes.dtype).flip(1)  # [N, 2], (width, height)
        limits = limits.reshape(-1, *[1] * (boxes.dim() - 1), 2)
        return torch.minimum(corners.clamp(min=0), limits).flatten(-2)
    height, width = size
    x, y = corners.unbind(-1)  # [..., 2]
    return torch.stack((x.clamp(0, width), y.clamp(0, height)), dim=-1).flatten(-2)


def has_min_size(boxes: Tensor, min_size: float) -> Tensor:
    """``[...]`` bool: both sides are at least ``min_size`` pixels (NaN is not)."""
    width = boxes[..., 2] - boxes[..., 0]
    height = boxes[..., 3] - boxes[..., 1]
    return (width >= min_size) & (height >= min_size)


def remove_small_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Indices ``[K]`` of ``boxes [N, 4]`` with both sides at least ``min_size`` pixels."""
    return has_min_size(boxes, min_size).nonzero().squeeze(1)


class BoxCoder:
    """Boxes as offsets from reference boxes (anchors or proposals) and back.

    The offsets are ``(dx, dy, dw, dh)``: the centre's shift in units of the reference's sides and
    the logarithm of the sides' ratio (R-CNN, Appendix C), each multiplied by a weight that brings
    its variance near one.

    Args:
        weights: of dx, dy, dw, dh; (1, 1, 1, 1) in the RPN, (10, 10, 5, 5) in the box head.
        bbox_xform_clip: upper limit of dw and dh in ``decode``.
    """

    def __init__(
        self,
        weights: tuple[float, float, float, float],
        bbox_xform_clip: float = BBOX_XFORM_CLIP,
    ) -> None:
        self.weights = weights
        self.bbox_xform_clip = bbox_xform_clip

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Offsets ``[..., 4]`` that lead from ``references [..., 4]`` to ``boxes [..., 4]``.

        References without area give inf or NaN: there is no epsilon.
        """
        weight_x, weight_y, weight_w, weight_h = self.weights
        ref_x, ref_y, ref_w, ref_h = _to_center_form(references)
        box_x, box_y, box_w, box_h = _to_center_form(boxes)
        return torch.stack(
            (
                weight_x * (box_x - ref_x) / ref_w,
                weight_y * (box_y - ref_y) / ref_h,
                weight_w * torch.log(box_w / ref_w),
                weight_h * torch.log(box_h / ref_h),
            ),
            dim=-1,
        )

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Boxes ``[..., 4]`` at the offsets ``deltas [..., 4]`` from ``references [..., 4]``.

        The two broadcast: one reference can serve several classes.
        """
        weight_x, weight_y, weight_w, weight_h = self.weights
        ref_x, ref_y, ref_w, ref_h = _to_center_form(references)
        dx, dy, dw, dh = deltas.unbind(-1)
        center_x = dx / weight_x * ref_w + ref_x
        center_y = dy / weight_y * ref_h + ref_y
        half_w = torch.exp((dw / weight_w).clamp(max=self.bbox_xform_clip)) * ref_w * 0.5
        half_h = torch.exp((dh / weight_h).clamp(max=self.bbox_xform_clip)) * ref_h * 0.5
        return torch.stack(
            (center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h), dim=-1
        )


def _to_center_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x, centre y, width, height of ``boxes [..., 4]``, each ``[...]``."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
