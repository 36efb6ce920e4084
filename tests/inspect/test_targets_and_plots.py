"""RPN targets as the loss has them, RoIAlign's samples, and the plotting functions."""

from __future__ import annotations

import inspect

import matplotlib
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from maskrcnn_scratch.inspect import (
    NOT_AVAILABLE,
    plot_anchors,
    plot_feature_maps,
    plot_masks,
    plot_objectness,
    plot_proposals,
    plot_roi_align,
    plots,
    rpn_targets,
)
from maskrcnn_scratch.inspect.sampling import roi_align_grid
from maskrcnn_scratch.losses import loss_objectness
from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.roi_heads import MultiScaleRoIAlign

matplotlib.use("Agg")


@pytest.fixture
def targets(images):
    return [
        {
            "boxes": torch.tensor([[5.0, 5.0, 60.0, 50.0], [40.0, 20.0, 70.0, 60.0]]),
            "labels": torch.tensor([1, 2]),
            "masks": torch.ones(2, *image.shape[1:], dtype=torch.uint8),
        }
        for image in images
    ]


def test_rpn_targets_are_those_of_the_loss(small_model, images, stages, targets):
    found = rpn_targets(small_model, stages, targets)
    losses = small_model.losses(images, targets)
    chosen, labels = [], []
    for n, of_image in enumerate(found):
        sampled = torch.cat((of_image.positives, of_image.negatives))
        chosen.append(stages.objectness[n, sampled])
        labels.append(of_image.labels[sampled])
        boxes = targets[n]["boxes"]
        scale = stages.images.sizes[n].flip(0) / torch.tensor(images[n].shape[1:]).flip(0)
        iou = box_iou(boxes * scale.repeat(2), stages.anchors)
        torch.testing.assert_close(of_image.best_iou, iou.amax(0))
        assert torch.equal(of_image.labels == 1, of_image.matched_idxs >= 0)
    loss = loss_objectness(torch.cat(chosen), torch.cat(labels))
    torch.testing.assert_close(loss, losses["loss_objectness"])


def test_an_image_without_objects_has_negatives_alone(small_model, images, stages, targets):
    none = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, *images[0].shape[1:], dtype=torch.uint8),
    }
    found = rpn_targets(small_model, stages, [none, targets[1]])[0]
    assert not found.labels.any()
    assert len(found.positives) == 0 < len(found.negatives)
    assert not found.best_iou.any()


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_samples_are_where_roi_align_reads(aligned, sampling_ratio):
    """On a map whose values are its own coordinates, the mean of the samples is what is pooled."""
    side, scale = 32, 0.25
    axis = (torch.arange(side) + 0.5) / scale  # image position of each feature pixel's centre
    feature = torch.stack((axis.expand(side, side), axis[:, None].expand(side, side)))[None]
    pool = MultiScaleRoIAlign(["0"], 7, sampling_ratio, scales=[scale], aligned=aligned)
    box = [10.0, 22.0, 90.5, 61.0]
    pooled = pool({"0": feature}, [torch.tensor([box])], [(128, 128)])[0]  # [2, 7, 7]
    grid = roi_align_grid(pool, box, scale)
    x = torch.tensor(grid.x_samples).reshape(7, -1).mean(1)
    y = torch.tensor(grid.y_samples).reshape(7, -1).mean(1)
    torch.testing.assert_close(pooled[0], x.expand(7, 7))
    torch.testing.assert_close(pooled[1], y[:, None].expand(7, 7))
    assert len(grid.x_edges) == len(grid.y_edges) == 8


def test_plots_take_and_return_axes(small_model, stages):
    pool = small_model.roi_heads.box_roi_pool
    calls = [
        lambda axes: plot_anchors(small_model, stages, 40, 30, axes=axes),
        lambda axes: plot_objectness(small_model, stages, 1, 1, axes=axes),
        lambda axes: plot_proposals(stages, 0, 10, axes=axes),
        lambda axes: plot_feature_maps(stages, "1", axes=axes),
        lambda axes: plot_roi_align(pool, stages, [10, 10, 60, 50], axes=axes),
        lambda axes: plot_masks(stages, 0, 0, axes=axes),
    ]
    for call in calls:
        axes = plt.subplots()[1]
        assert call(axes) is axes
        assert axes.get_title()
        assert isinstance(call(None), Axes)
        plt.close("all")


def test_plots_draw_what_they_say(small_model, stages):
    assert len(plot_proposals(stages, 0, 10).patches) == 10
    assert len(plot_anchors(small_model, stages, 40, 30).patches) == 3 * 5
    pool = small_model.roi_heads.box_roi_pool
    axes = plot_roi_align(pool, stages, [10, 10, 60, 50])
    points = [tuple(point) for found in axes.collections[2:] for point in found.get_offsets()]
    assert len(points) == (7 * 2) ** 2
    axes = plot_roi_align(object(), stages, [10, 10, 60, 50])
    assert axes.get_title() == f"RoIAlign: {NOT_AVAILABLE}"
    plt.close("all")


def test_plots_are_short():
    for name in ("anchors", "objectness", "proposals", "feature_maps", "roi_align", "masks"):
        assert len(inspect.getsourcelines(getattr(plots, f"plot_{name}"))[0]) < 40


def test_plots_of_what_is_not_there(stages):
    with pytest.raises(IndexError, match="detection 5000: image 0 has"):
        plot_masks(stages, 0, 5000)
