"""Box geometry: areas, IoU, clipping and the box coder.

Boxes are ``xyxy`` in pixels, half-open: width is ``x2 - x1``. ``[..., 4]`` means any number of
leading (batch) dimensions.

Products of coordinates overflow small types: 300 * 300 exceeds float16, 12 * 12 exceeds int8. As in
torchvision, areas and IoU are computed in float32 for half types and in int32 (int64 stays) for
integers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskrcnn_scratch.structures import at_least_float32

# Upper limit of dw and dh: decoding multiplies a box's side by exp(dw), which would overflow for a
# large prediction. With this limit a 16-pixel anchor becomes at most 1000 pixels long.
BBOX_XFORM_CLIP = math.log(1000.0 / 16)


def upcast(boxes: Tensor) -> Tensor:
    """The type that areas are computed in: float32 for half types, int32 for smaller integers."""
    if boxes.is_floating_point():
        return at_least_float32(boxes)
    return boxes if boxes.dtype in (torch.int32, torch.int64) else boxes.int()


def box_area(boxes: Tensor, fmt: str = "xyxy") -> Tensor:
    """Areas of ``boxes [..., 4]``, ``[...]``; negative where exactly one side is.

    Half types give float32, integers at least int32.

    Args:
        fmt: ``"xyxy"``, ``"xywh"`` (corner, sides) or ``"cxcywh"`` (centre, sides).
    """
    boxes = upcast(boxes)
    if _format(fmt) == "xyxy":
        return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return boxes[..., 2] * boxes[..., 3]


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Intersection over union of each pair: ``[..., K, 4]``, ``[..., K', 4]`` -> ``[..., K, K']``.

    Leading dimensions broadcast. Two boxes without area give NaN (0 / 0), as in
    ``torchvision.ops.box_iou``. Each step rounds on its own, so that equality tests on IoU
    (low-quality matches) agree with torchvision's. Half types and integers give float32.

    Args:
        fmt: as in ``box_area``.
    """
    left1, top1, right1, bottom1 = _corners(boxes1, fmt)[..., None].unbind(-2)  # each [..., K, 1]
    # Contiguous, so that the minima and maxima below are vectorised.
    corners2 = _corners(boxes2, fmt).transpose(-1, -2).contiguous()  # [..., 4, K']
    left2, top2, right2, bottom2 = corners2[..., None, :].unbind(-3)  # each [..., 1, K']
    width = upcast(torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    height = upcast(torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    intersection = width * height  # [..., K, K']
    areas1, areas2 = box_area(boxes1, fmt), box_area(boxes2, fmt)
    return intersection / (areas1[..., :, None] + areas2[..., None, :] - intersection)


def _corners(boxes: Tensor, fmt: str) -> Tensor:
    """``boxes [..., 4]`` as xyxy; half types keep their type, as torchvision rounds there."""
    if not boxes.is_floating_point():
        boxes = upcast(boxes)
    if _format(fmt) == "xyxy":
        return boxes
    first, sides = boxes[..., :2], boxes[..., 2:]
    if fmt == "xywh":
        return torch.cat((first, first + sides), dim=-1)
    return torch.cat((first - sides / 2, first + sides / 2), dim=-1)


def _format(fmt: str) -> str:
    if fmt not in ("xyxy", "xywh", "cxcywh"):
        raise ValueError(f"fmt is {fmt!r}: expected 'xyxy', 'xywh' or 'cxcywh'")
    return fmt


def clip_boxes_to_image(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Moves corners into the image: x to ``[0, width]``, y to ``[0, height]``.

    Args:
        boxes: ``[..., 4]``.
        size: ``(height, width)`` of one image, or sizes ``[N, 2]`` of all images for
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
    """Indices ``[K']`` of ``boxes [K, 4]`` with both sides at least ``min_size`` pixels."""
    return has_min_size(boxes, min_size).nonzero().squeeze(1)


class BoxCoder:
    """Encodes boxes as deltas relative to reference boxes (anchors or proposals), and decodes them.

    The deltas are ``(dx, dy, dw, dh)``: the centre's shift in units of the reference's sides and
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
        """Deltas ``[..., 4]`` from ``references [..., 4]`` to ``boxes [..., 4]``.

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
        """Boxes ``[..., 4]`` of ``deltas [..., 4]`` relative to ``references [..., 4]``.

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

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """torchvision's name of ``encode``: deltas ``[K, 4]`` from ``proposals`` to the boxes."""
        return self.encode(reference_boxes, proposals)

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """torchvision's ``decode``: deltas ``[K, C * 4]`` of ``boxes [K, 4]`` to ``[K, C * 4]``."""
        deltas = rel_codes.reshape(rel_codes.shape[0], -1, 4)
        return self.decode(deltas, boxes[:, None].to(rel_codes.dtype)).flatten(1)


def _to_center_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x, centre y, width, height of ``boxes [..., 4]``, each ``[...]``."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
