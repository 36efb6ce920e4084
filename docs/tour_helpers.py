"""What the pages of the tour share: the trained model, its images, and a few pictures.

The model is the demo's: trained once, on generated shapes, and kept in ``build/tour``. With
``TOUR_MODEL=untrained`` in the environment it is an untrained one, to see whether the pages run.
"""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import matplotlib
import skimage.data
import torch
from matplotlib import pyplot as plt
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from maskrcnn_scratch.builders.from_config import TrainedModel, load_trained  # noqa: E402
from maskrcnn_scratch.builders.small import small_maskrcnn  # noqa: E402
from maskrcnn_scratch.data.shapes import ShapesDataset  # noqa: E402
from maskrcnn_scratch.mask_rcnn import MaskRCNN  # noqa: E402
from maskrcnn_scratch.ops.reference.conv3x3 import matrices_of_points  # noqa: E402
from maskrcnn_scratch.structures import StageOutputs, Target  # noqa: E402

CHECKPOINTS = (ROOT / "runs/demo/run/best.pt", ROOT / "build/tour/run/best.pt")
COLORS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#1864ab")

plt.rcParams.update(
    {
        "figure.dpi": 110,
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
    }
)


def untrained() -> MaskRCNN:
    """The small model with random weights."""
    torch.manual_seed(0)
    return small_maskrcnn(4, min_size=128, max_size=128).eval()


@cache
def trained() -> TrainedModel:
    """The demo's model; it is trained first where no run of the demo is found (some minutes)."""
    if os.environ.get("TOUR_MODEL") == "untrained":
        return TrainedModel(untrained(), ShapesDataset.class_names, ShapesDataset.category_labels)
    for path in CHECKPOINTS:
        if path.is_file():
            return load_trained(path)
    from tools.demo import learn_shapes

    learn_shapes(CHECKPOINTS[-1].parent.parent)
    matplotlib.use("module://matplotlib_inline.backend_inline")
    return load_trained(CHECKPOINTS[-1])


def held_out(count: int = 40) -> ShapesDataset:
    """Generated images that the model has not been trained on."""
    return ShapesDataset(count, seed=1)


@cache
def shapes(index: int = 2) -> tuple[Tensor, Target]:
    """One of them and its ground truth."""
    image, target = held_out()[index]
    return image, target


@cache
def stages(index: int = 2) -> StageOutputs:
    """Everything that the trained model computes for that image."""
    with torch.no_grad():
        return trained().model.run_stages([shapes(index)[0]])


def photograph() -> Tensor:
    """The astronaut of scikit-image, ``[3, 512, 512]`` in 0-1."""
    return torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255


def panels(count: int, height: float = 2.6, width: float | None = None) -> list[plt.Axes]:
    """``count`` axes in a row, for pictures."""
    _, axes = plt.subplots(1, count, figsize=(width or height * count, height), squeeze=False)
    return list(axes[0])


def show(axes: plt.Axes, image: Tensor, title: str = "", **options: object) -> None:
    """An image ``[3, H, W]`` or a map ``[H, W]`` without ticks."""
    pixels = image.detach().cpu()
    axes.imshow(pixels.permute(1, 2, 0).clamp(0, 1) if pixels.dim() == 3 else pixels, **options)
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_boxes(axes: plt.Axes, boxes: Tensor, color: str = COLORS[1], **options: object) -> None:
    """Outlines of ``boxes [K, 4]``."""
    for x1, y1, x2, y2 in boxes.tolist():
        options = {"fill": False, "edgecolor": color, "linewidth": 1.2, **options}
        axes.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, **options))


def winograd_error(points: tuple[Fraction, ...], channels: int = 256) -> float:
    """Relative error (L2) of a float32 Winograd convolution with these points, against float64.

    Inputs and weights are drawn from a normal distribution: 64 tiles of one output channel.
    """
    a, g, b = matrices_of_points(points)
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randn(64, channels, len(b), len(b), generator=generator, dtype=torch.float64)
    weight = torch.randn(channels, 3, 3, generator=generator, dtype=torch.float64)
    values = g @ weight @ g.T  # [C, t, t]

    def convolve(dtype: torch.dtype) -> Tensor:
        at, bt = a.to(dtype), b.to(dtype)
        transformed = bt @ tiles.float().to(dtype) @ bt.T  # [64, C, t, t]
        products = torch.einsum("ncyx,cyx->nyx", transformed, values.to(dtype))
        return (at @ products @ at.T).double()

    exact = convolve(torch.float64)
    return float((convolve(torch.float32) - exact).norm() / exact.norm())
