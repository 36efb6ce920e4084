"""``build_model`` follows ``ModelConfig``, and checkpoints can be loaded as models."""

import pytest
import torch
from torch import nn

from maskrcnn_scratch.backbone import FrozenBatchNorm2d
from maskrcnn_scratch.builders.from_config import (
    ModelConfig,
    build_model,
    load_starting_weights,
    load_trained,
)
from maskrcnn_scratch.builders.resnet50_fpn import maskrcnn_resnet50_fpn

SMALL = {"architecture": "small", "weights": "none"}


def test_large_model_has_the_keys_of_the_published_one():
    with torch.device("meta"):
        ours = build_model(ModelConfig(), 91).state_dict()
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    assert ours.keys() == {key for key in theirs if not key.endswith("num_batches_tracked")}
    assert all(theirs[key].shape == value.shape for key, value in ours.items())


@pytest.mark.parametrize(
    "weights, eps, frozen", [("imagenet", 1e-5, True), ("coco", 0.0, True), ("none", 1e-5, False)]
)
def test_batch_norm_and_frozen_layers(weights, eps, frozen):
    with torch.device("meta"):
        body = build_model(ModelConfig(weights=weights), 3).backbone.body
    assert isinstance(body.bn1, FrozenBatchNorm2d if frozen else nn.BatchNorm2d)
    assert body.bn1.eps == eps
    assert body.conv1.weight.requires_grad is not frozen
    assert body.layer2[0].conv1.weight.requires_grad


def test_anchor_sizes_are_divided_among_the_levels():
    sizes = (12, 20, 24, 40, 48, 80, 88, 144, 176, 224)
    model = build_model(ModelConfig(**SMALL, anchor_sizes=sizes, aspect_ratios=(1.0,)), 2)
    anchors = model.rpn.anchor_generator
    assert anchors.sizes == ((12, 20), (24, 40), (48, 80), (88, 144), (176, 224))
    assert anchors.num_anchors_per_location() == [2] * 5


def test_numbers_reach_the_model():
    config = ModelConfig(
        **SMALL, pre_nms_top_n=30, post_nms_top_n=20, rpn_samples=40, box_samples=10, detections=7
    )
    model = build_model(config, 2)
    assert model.rpn.pre_nms_top_n == {"training": 30, "testing": 30}
    assert model.rpn.post_nms_top_n == {"training": 20, "testing": 20}
    assert model.rpn.fg_bg_sampler.batch_size_per_image == 40
    assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 10
    assert model.roi_heads.detections_per_img == 7


def test_test_scale_is_used_in_inference_only():
    config = ModelConfig(**SMALL, min_size=(64,), max_size=300, test_scale=2.0)
    transform = build_model(config, 2).transform
    assert transform.train().resized_size(100, 50) == (128, 64)
    assert transform.eval().resized_size(100, 50) == (200, 100)
    assert transform.eval().resized_size(100, 200) == (150, 300)


def test_subpixel_masks():
    plain, precise = (build_model(ModelConfig(**SMALL, subpixel_masks=s), 2) for s in (False, True))
    assert (plain.roi_heads.mask_roi_pool.aligned, precise.roi_heads.mask_roi_pool.aligned) == (
        False,
        True,
    )
    assert plain.transform.paste is not precise.transform.paste


def test_weights_file_with_another_number_of_classes(tmp_path):
    source = build_model(ModelConfig(**SMALL), 5)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    config = ModelConfig(architecture="small", weights=str(tmp_path / "w.pt"))
    model = build_model(config, 3)
    with pytest.warns(UserWarning, match=r"w\.pt: .*cls_score"):
        load_starting_weights(model, config)
    key = "rpn.head.cls_logits.weight"
    assert torch.equal(model.state_dict()[key], source.state_dict()[key])


@pytest.mark.slow
def test_published_weights_have_coco_class_names(tmp_path):
    model = build_model(ModelConfig(weights="coco"), 91)
    torch.save(model.state_dict(), tmp_path / "coco.pth")
    trained = load_trained(tmp_path / "coco.pth")
    assert len(trained.class_names) == 80 and trained.class_names[90] == "toothbrush"
    assert trained.category_labels[13] == 13 and 12 not in trained.category_labels


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_trained(tmp_path / "x.pt")


def test_images_without_objects_give_every_parameter_a_gradient():
    """In distributed training all processes exchange all gradients, whatever is in their images."""
    model = build_model(ModelConfig(**SMALL, min_size=(64,), max_size=64), 3).train()
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    losses = model([torch.rand(3, 64, 64)] * 2, [empty] * 2)
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
