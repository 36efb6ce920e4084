"""detectron2's weights in our model, against a reimplementation of detectron2's network."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor, nn

from maskrcnn_scratch import (
    AnchorGenerator,
    Conventions,
    FasterRCNN,
    MaskRCNN,
    fasterrcnn_resnet50_fpn,
    load_model,
    maskrcnn_resnet50_fpn,
)
from maskrcnn_scratch.conventions import paste_masks_subpixel
from maskrcnn_scratch.parity.calibrate import calibrate
from maskrcnn_scratch.rpn.anchors import anchors_of_location
from maskrcnn_scratch.structures import ImageList
from maskrcnn_scratch.weights import read_state_dict, write_state_dict
from maskrcnn_scratch.weights.identify import convert
from tests.weights.same_detections import assert_same_detections

pytest.importorskip("torchvision")
from maskrcnn_scratch.parity import detectron2_network

CLASSES = 80
OPTIONS: dict[str, Any] = {
    "num_classes": CLASSES + 1,
    "min_size": 224,  # the size of the images, so that none is resized
    "max_size": 1333,
    "rpn_post_nms_top_n_test": 100,
    "box_detections_per_img": 15,
}


def photographs() -> list[Tensor]:
    """RGB in 0-255. 224 is no multiple of 64, so that the two rules for strides differ."""
    images = [skimage.data.astronaut()[:224, 100:420], skimage.data.chelsea()[20:244, 50:410]]
    return [torch.from_numpy(image.copy()).permute(2, 0, 1).float() for image in images]


@pytest.fixture(scope="module")
def theirs() -> detectron2_network.GeneralizedRCNN:
    torch.manual_seed(0)
    calibrated = maskrcnn_resnet50_fpn(
        weights_backbone=None, conventions=Conventions.detectron2(), **OPTIONS
    ).eval()
    calibrate(calibrated, photographs()[0] / 255, background_logit=6.0)
    model = detectron2_network.GeneralizedRCNN(
        CLASSES, post_nms_topk=100, detections_per_image=15
    ).eval()
    model.load_state_dict(convert(calibrated.state_dict(), "torchvision", "detectron2"))
    return model


@pytest.fixture(scope="module")
def expected(theirs: detectron2_network.GeneralizedRCNN) -> list[dict[str, Tensor]]:
    results = theirs([image.flip(0) for image in photographs()])  # BGR
    return [{**result, "labels": result["labels"] + 1} for result in results]


@torch.no_grad()
def detect(model: nn.Module) -> list[dict[str, Tensor]]:
    return model.eval()([image / 255 for image in photographs()])


def model_with(theirs: detectron2_network.GeneralizedRCNN, conventions: Conventions) -> FasterRCNN:
    model = maskrcnn_resnet50_fpn(weights_backbone=None, conventions=conventions, **OPTIONS)
    model.load_state_dict(convert(theirs.state_dict(), "detectron2", "torchvision"))
    return model


def save_model_zoo_pickle(state_dict: dict[str, Tensor], file: Path) -> None:
    """With the constants that the published files contain beside the weights."""
    arrays = {key: tensor.numpy() for key, tensor in state_dict.items()}
    for level in range(5):
        key = f"proposal_generator.anchor_generator.cell_anchors.{level}"
        arrays[key] = np.zeros((3, 4), np.float32)
    arrays["pixel_mean"] = np.array(detectron2_network.MEAN_BGR, np.float32).reshape(3, 1, 1)
    arrays["pixel_std"] = np.ones((3, 1, 1), np.float32)
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    file.write_bytes(pickle.dumps(content))


def save_checkpoint(state_dict: dict[str, Tensor], file: Path) -> None:
    torch.save({"model": state_dict, "iteration": 270_000}, file)


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_model_zoo_pickle, save_checkpoint])
def test_a_file_gives_the_same_detections(
    theirs: detectron2_network.GeneralizedRCNN,
    expected: list[dict[str, Tensor]],
    tmp_path: Path,
    save: Callable[[dict[str, Tensor], Path], None],
) -> None:
    save(theirs.state_dict(), tmp_path / "model_final.pkl")
    options = {key: value for key, value in OPTIONS.items() if key != "num_classes"}
    model = load_model(tmp_path / "model_final.pkl", **options)
    assert isinstance(model, MaskRCNN)
    assert_same_detections(detect(model), expected, subpixel=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "field",
    ["image_std", "stride_in_1x1", "round_anchors", "roi_aligned", "sampling_ratio", "paste"],
)
def test_detections_differ_with_any_other_convention(
    theirs: detectron2_network.GeneralizedRCNN, expected: list[dict[str, Tensor]], field: str
) -> None:
    other = getattr(Conventions.torchvision(), field)
    model = model_with(theirs, replace(Conventions.detectron2(), **{field: other}))
    with pytest.raises(AssertionError):
        assert_same_detections(detect(model), expected, subpixel=True)


def test_anchors_equal_detectron2s() -> None:
    padded = (224, 352)
    grids = [(math.ceil(padded[0] / s), math.ceil(padded[1] / s)) for s in (4, 8, 16, 32, 64)]
    expected = [
        detectron2_network.grid_anchors(torch.Size(grid), stride, 8 * stride)
        for grid, stride in zip(grids, detectron2_network.STRIDES, strict=True)
    ]
    images = ImageList(torch.empty(1, 3, *padded), torch.tensor([padded]))
    maps = [torch.empty(1, 256, *grid) for grid in grids]
    model = maskrcnn_resnet50_fpn(weights_backbone=None, conventions=Conventions.detectron2())
    anchors = model.rpn.anchor_generator(images, maps)[0]
    torch.testing.assert_close(anchors, torch.cat(expected), atol=1e-4, rtol=0)


def test_conversion_and_back_gives_the_same_bits(
    theirs: detectron2_network.GeneralizedRCNN, tmp_path: Path
) -> None:
    state_dict = theirs.state_dict()
    write_state_dict(convert(state_dict, None, "torchvision"), tmp_path / "ours.safetensors")
    ours = read_state_dict(tmp_path / "ours.safetensors")
    write_state_dict(convert(ours, None, "detectron2"), tmp_path / "theirs.pkl")
    back = read_state_dict(tmp_path / "theirs.pkl")
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], state_dict[key]) for key in back)


def test_weights_without_a_mask_branch(theirs: detectron2_network.GeneralizedRCNN) -> None:
    boxes_only = {k: t for k, t in theirs.state_dict().items() if "mask_head" not in k}
    model = fasterrcnn_resnet50_fpn(weights_backbone=None, num_classes=CLASSES + 1)
    model.load_state_dict(convert(boxes_only, "detectron2", "torchvision"))


def test_subpixel_paste_equals_detectron2s() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 28, 28, generator=generator)
    boxes = torch.tensor(
        [
            [3.2, 4.7, 30.1, 21.9],
            [-5.5, -3.0, 12.5, 60.0],  # beyond the image
            [10.3, 10.3, 10.9, 11.0],  # less than a pixel
            [0.0, 0.0, 40.0, 30.0],
            [38.5, 2.0, 90.0, 3.5],
        ]
    )
    pasted = paste_masks_subpixel(masks[:, None], boxes, (30, 40))
    torch.testing.assert_close(
        pasted, detectron2_network.paste(masks, boxes, (30, 40)), atol=1e-5, rtol=0
    )
    point = torch.tensor([[5.5, 5.5, 5.5, 5.5]])
    assert not paste_masks_subpixel(masks[:1, None], point, (30, 40)).any()
    assert paste_masks_subpixel(masks[:0, None], boxes[:0], (30, 40)).shape == (0, 1, 30, 40)


def test_anchors_of_several_sizes_are_in_detectron2s_order() -> None:
    """detectron2's loops: for each size, for each aspect ratio."""
    sizes, ratios = (32.0, 40.0), (0.5, 1.0, 2.0)
    expected = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            expected.append([-width / 2, -height / 2, width / 2, height / 2])
    anchors = anchors_of_location(sizes, ratios, rounded=False, ratios_fastest=True)
    torch.testing.assert_close(anchors, torch.tensor(expected))


def test_the_order_of_anchors_must_agree_with_the_conventions() -> None:
    def build(conventions: Conventions, ratios_fastest: bool) -> None:
        sizes = ((32, 40), (64, 80), (128, 160), (256, 320), (512, 640))
        anchors = AnchorGenerator(sizes, (0.5, 1.0), ratios_fastest=ratios_fastest)
        maskrcnn_resnet50_fpn(
            weights_backbone=None, conventions=conventions, rpn_anchor_generator=anchors
        )

    build(Conventions.detectron2(), True)
    with pytest.raises(ValueError, match=r"AnchorGenerator\(\.\.\., ratios_fastest=True\)"):
        build(Conventions.detectron2(), False)
    with pytest.raises(ValueError, match=r"ratios_fastest=False"):
        build(Conventions.torchvision(), True)
