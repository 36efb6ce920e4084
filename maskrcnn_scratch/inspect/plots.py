"""Pictures of the stages with matplotlib. Each function draws into ``axes`` and returns them.

Shapes: see ``structures``. Boxes are in the pixels of the resized image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.levels import (
    NOT_AVAILABLE,
    anchor_levels,
    pooling_levels,
    pooling_scales,
)
from maskrcnn_scratch.inspect.pictures import batch_pixels, feature_colors
from maskrcnn_scratch.inspect.sampling import roi_align_grid
from maskrcnn_scratch.structures import StageOutputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#e4572e", "#2e86ab", "#3a9d5d", "#8e5bd0", "#c98a00", "#d6457f", "#00838f")


def plot_anchors(
    model: GeneralizedRCNN,
    stages: StageOutputs,
    x: float,
    y: float,
    image: int = 0,
    axes: Axes | None = None,
) -> Axes:
    """The anchors of the location nearest to (x, y) at every level, one colour per level."""
    axes = _show_image(stages, image, axes)
    levels = anchor_levels(model, stages)
    if levels is None:
        axes.set_title(f"anchors: {NOT_AVAILABLE}")
        return axes
    for index, level in enumerate(levels):
        anchors = stages.anchors[level.first : level.first + level.size]
        anchors = anchors.reshape(-1, level.per_location, 4)  # [H_l * W_l, a, 4]
        centres = (anchors[:, 0, :2] + anchors[:, 0, 2:]) / 2
        nearest = (centres - centres.new_tensor([x, y])).square().sum(1).argmin()
        for shape, box in enumerate(anchors[nearest].tolist()):
            label = f"level {level.name}" if shape == 0 else None
            _draw_box(axes, box, COLORS[index % len(COLORS)], label=label)
    axes.legend(loc="upper right")
    axes.set_title(f"anchors at ({x:g}, {y:g})")
    return axes


def plot_objectness(
    model: GeneralizedRCNN,
    stages: StageOutputs,
    level: int,
    image: int = 0,
    axes: Axes | None = None,
) -> Axes:
    """The highest objectness of the anchors of each location of a level, 0-1, over the image."""
    axes = _show_image(stages, image, axes)
    levels = anchor_levels(model, stages)
    if levels is None:
        axes.set_title(f"objectness: {NOT_AVAILABLE}")
        return axes
    at = levels[level]
    logits = stages.objectness[image, at.first : at.first + at.size]
    scores = logits.reshape(at.height, at.width, -1).sigmoid().amax(2)  # [H_l, W_l]
    height, width = stages.images.padded_size
    shown = axes.imshow(
        scores.numpy(force=True),
        extent=(0, width, height, 0),
        cmap="magma",
        vmin=0,
        vmax=1,
        alpha=0.65,
    )
    axes.figure.colorbar(shown, ax=axes, label="objectness", shrink=0.8)
    _keep_to_image(axes, stages, image)
    axes.set_title(f"objectness of level {at.name}")
    return axes


def plot_proposals(
    stages: StageOutputs, image: int = 0, count: int = 50, axes: Axes | None = None
) -> Axes:
    """The best ``count`` proposals of an image; the more likely an object, the more opaque."""
    axes = _show_image(stages, image, axes)
    shown = min(count, int(stages.proposals.counts[image]))
    boxes = stages.proposals.boxes[image, :shown].tolist()
    scores = stages.proposals.scores[image, :shown].tolist()
    for box, score in zip(boxes, scores, strict=True):
        _draw_box(axes, box, COLORS[1], alpha=0.15 + 0.85 * score)
    axes.set_title(f"the best {shown} of {int(stages.proposals.counts[image])} proposals")
    return axes


def plot_feature_maps(
    stages: StageOutputs, level: str, image: int = 0, axes: Axes | None = None
) -> Axes:
    """A feature map's three principal components as red, green and blue.

    Raises:
        KeyError: there is no feature map of this name.
    """
    axes = _new_axes(axes)
    colors, _ = feature_colors(stages.features[level][image])  # [H_l, W_l, 3]
    axes.imshow(colors, interpolation="nearest")
    channels, height, width = stages.features[level].shape[1:]
    axes.set_title(f"level {level}: {channels} channels of {height} x {width}")
    axes.set_axis_off()
    return axes


def plot_roi_align(
    pool: Any, stages: StageOutputs, box: Sequence[float], image: int = 0, axes: Axes | None = None
) -> Axes:
    """The bins and sampling points of RoIAlign for ``box``, over the image.

    Args:
        pool: ``model.roi_heads.box_roi_pool`` or ``mask_roi_pool``.
        box: (x1, y1, x2, y2) in the pixels of the resized image.
    """
    axes = _show_image(stages, image, axes)
    levels = pooling_levels(pool, stages, stages.anchors.new_tensor([list(box)]))
    scales = pooling_scales(pool, stages)
    if levels is None or scales is None:
        axes.set_title(f"RoIAlign: {NOT_AVAILABLE}")
        return axes
    level = int(levels[0])
    grid = roi_align_grid(pool, box, scales[level])
    if grid is None:
        axes.set_title(f"RoIAlign: {NOT_AVAILABLE}")
        return axes
    axes.vlines(grid.x_edges, grid.y_edges[0], grid.y_edges[-1], COLORS[1], linewidth=0.8)
    axes.hlines(grid.y_edges, grid.x_edges[0], grid.x_edges[-1], COLORS[1], linewidth=0.8)
    for y in grid.y_samples:
        axes.scatter(grid.x_samples, [y] * len(grid.x_samples), s=5, color=COLORS[0], zorder=3)
    _draw_box(axes, box, "white")
    axes.set_title(f"RoIAlign from level {pool.featmap_names[level]}")
    return axes


def plot_masks(stages: StageOutputs, image: int, detection: int, axes: Axes | None = None) -> Axes:
    """The mask probabilities ``[M, M]`` of a detection, with the border at 0.5.

    Raises:
        ValueError: the model has no mask branch.
        IndexError: there is no such detection.
    """
    if stages.detections.masks is None:
        raise ValueError("the model has no mask branch")
    count = int(stages.detections.counts[image])
    if not 0 <= detection < count:
        raise IndexError(f"detection {detection}: image {image} has {count}")
    axes = _new_axes(axes)
    mask = stages.detections.masks[image, detection, 0].numpy(force=True)  # [M, M]
    shown = axes.imshow(mask, cmap="magma", vmin=0, vmax=1)
    axes.figure.colorbar(shown, ax=axes, label="probability", shrink=0.8)
    if mask.min() < 0.5 < mask.max():
        axes.contour(mask, levels=[0.5], colors="white", linewidths=1.5)
    axes.set_title(f"mask of detection {detection}, {mask.shape[0]} x {mask.shape[1]}")
    axes.set_axis_off()
    return axes


def _new_axes(axes: Axes | None) -> Axes:
    if axes is not None:
        return axes
    from matplotlib import pyplot as plt

    return plt.subplots()[1]


def _show_image(stages: StageOutputs, image: int, axes: Axes | None) -> Axes:
    axes = _new_axes(axes)
    axes.imshow(batch_pixels(stages, image))
    _keep_to_image(axes, stages, image)
    axes.set_axis_off()
    return axes


def _keep_to_image(axes: Axes, stages: StageOutputs, image: int) -> None:
    height, width = stages.images.sizes[image].tolist()
    axes.set(xlim=(0, width), ylim=(height, 0))


def _draw_box(
    axes: Axes, box: Sequence[float], color: str, *, label: str | None = None, alpha: float = 1.0
) -> None:
    from matplotlib.patches import Rectangle

    corner, width, height = (box[0], box[1]), box[2] - box[0], box[3] - box[1]
    axes.add_patch(
        Rectangle(
            corner, width, height, fill=False, edgecolor=color, linewidth=1.5, alpha=alpha,
            label=label,
        )
    )  # fmt: skip
