"""Pasted masks against exact arithmetic, and how far float32 may be from it.

PyTorch resizes bilinearly with one of several kernels, which do not round alike. All of them
compute where output pixel ``x`` reads the input as ``p = scale * (x + 0.5) - 0.5``. Compiled for
AVX2 or AVX-512 (``ATEN_CPU_CAPABILITY``), for most other CPUs and for CUDA, the product and the
difference are one fused multiply-add, which rounds once; in the baseline x86 build they are two
operations, which round twice, as our kernels do. The two positions differ by up to one unit in the
last place of ``p``: 1e-6 for a mask of 28 pixels, 1.5e-5 for an image of 400. So a difference from
torchvision says which kernel ran, not whether ours is right. The reference is therefore
torchvision's own function in float64; its rounding there is 1e-9 of float32's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_scratch.parity.compare import Check, Inputs, compare

UNIT_ROUNDOFF = 2.0**-24  # of float32: the relative error of one operation


def bilinear_bound(values: Tensor) -> float:
    """Largest error of resizing ``values [..., H, W]`` bilinearly in float32.

    With ``u`` the unit roundoff, along an axis of ``n`` values:

    - Position: rounding ``scale``, the product and the difference moves ``p`` by at most ``u * n``
      each. The result is continuous in ``p``, and its slope is at most the largest difference
      ``d`` between neighbours. So this adds ``3 u n d``, or less with a fused multiply-add.
    - Blend: ``(1 - w) * low + w * high`` rounds one weight, the products and the sum, which adds
      ``3 u v``, where ``v`` is the largest absolute value.

    The sum over both axes is ``3 u (H d_y + W d_x + 2 v)``: 1.1e-5 for a mask of 28 x 28 pixels
    with its border of zeros and values in 0-1, less where neighbours are alike.
    """
    values = values.double()
    height, width = values.shape[-2:]
    down, right = _largest(values.diff(dim=-2)), _largest(values.diff(dim=-1))
    return 3 * UNIT_ROUNDOFF * (height * down + width * right + 2 * _largest(values))


def paste_check(
    level: str,
    name: str,
    ours: Tensor,
    theirs: Tensor,
    masks: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
) -> Check:
    """Compares pasted masks with torchvision's function in float64.

    Ours and torchvision's must both be within :func:`bilinear_bound` of it, so that they are within
    twice the bound of each other. The note says how far torchvision's are on this machine.

    Args:
        ours, theirs: ``[D, 1, H, W]``, pasted by us and by torchvision.
        masks, boxes: ``[D, 1, M, M]`` in 0-1 and ``[D, 4]``, which both pasted.
        size: (H, W).
    """
    if ours.shape != theirs.shape:
        return compare(level, name, ours, theirs)
    passed = True
    largest = largest_theirs = largest_bound = largest_value = 0.0
    worst = None
    for n in range(len(masks)):  # one at a time: an image per mask in float64 takes much memory
        exact = paste_masks_in_image(masks[n : n + 1].double(), boxes[n : n + 1], size)
        bound = bilinear_bound(F.pad(masks[n], (1, 1, 1, 1)))
        error = _largest((ours[n : n + 1] - exact).nan_to_num(nan=torch.inf))
        error_theirs = _largest((theirs[n : n + 1] - exact).nan_to_num(nan=torch.inf))
        passed = passed and error <= bound and error_theirs <= bound
        if error > largest:
            given: Inputs = {"mask": masks[n], "box": str(boxes[n].tolist())}
            worst = compare(
                level, f"{n}", {f"mask {n}": ours[n]}, {"": exact[0]}, inputs=given
            ).worst
        largest, largest_theirs = max(largest, error), max(largest_theirs, error_theirs)
        largest_bound, largest_value = (
            max(largest_bound, bound),
            max(largest_value, _largest(exact)),
        )
    relative = largest / max(largest_value, 1e-30)
    tolerance = f"{largest_bound:.0e} absolute, from float64"
    note = f"torchvision is {largest_theirs:.0e} from float64"
    return Check(level, name, largest, relative, tolerance, passed, note, worst)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
