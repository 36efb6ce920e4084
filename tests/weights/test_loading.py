"""Loading weights into models with other classes, other channels, or other parts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import (
    Conventions,
    FasterRCNN,
    FastRCNNPredictor,
    FrozenBatchNorm2d,
    MaskRCNN_ResNet50_FPN_Weights,
    ResNet50_Weights,
    fasterrcnn_resnet50_fpn,
    load_model,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
    resnet_fpn_backbone,
)
from maskrcnn_scratch.builders.from_config import ModelConfig, build_model, with_resolved_eps
from maskrcnn_scratch.conventions import paste_masks_subpixel
from maskrcnn_scratch.weights import WeightsError, enums, write_state_dict
from maskrcnn_scratch.weights.download import sha256_of
from maskrcnn_scratch.weights.loading import inflate_stem, load_pretrained

FRESH = [
    "roi_heads.box_predictor.cls_score.weight",
    "roi_heads.box_predictor.cls_score.bias",
    "roi_heads.box_predictor.bbox_pred.weight",
    "roi_heads.box_predictor.bbox_pred.bias",
    "roi_heads.mask_predictor.mask_fcn_logits.weight",
    "roi_heads.mask_predictor.mask_fcn_logits.bias",
]
STEM = "backbone.body.conv1.weight"


@pytest.fixture(scope="module")
def coco() -> dict[str, Tensor]:
    """Random weights with the keys and shapes of the published file."""
    torch.manual_seed(0)
    return dict(maskrcnn_resnet50_fpn(weights_backbone=None).state_dict())


@pytest.fixture
def published(
    coco: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MaskRCNN_ResNet50_FPN_Weights:
    """COCO_V1, whose file is already in the cache folder."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    member = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    torch.save(coco, tmp_path / "checkpoints" / Path(member.url).name)
    return member


def epsilons(model: nn.Module) -> set[float]:
    return {m.eps for m in model.modules() if isinstance(m, FrozenBatchNorm2d)}


def assert_loaded(model: nn.Module, source: dict[str, Tensor], skipped: list[str]) -> None:
    for key, tensor in model.state_dict().items():
        if key not in skipped:
            assert torch.equal(tensor, source[key]), key


def test_published_weights(
    published: MaskRCNN_ResNet50_FPN_Weights, coco: dict[str, Tensor]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = maskrcnn_resnet50_fpn(weights="DEFAULT", progress=False)
    assert_loaded(model, coco, [])
    assert epsilons(model) == {0.0}
    assert not model.backbone.body.layer1[0].conv1.weight.requires_grad
    assert model.backbone.body.layer2[0].conv1.weight.requires_grad


def test_another_number_of_classes(
    published: MaskRCNN_ResNet50_FPN_Weights, coco: dict[str, Tensor]
) -> None:
    with pytest.warns(UserWarning, match="not loaded") as warned:
        model = maskrcnn_resnet50_fpn(weights=published, num_classes=5)
    message = str(warned[0].message)
    assert message.startswith("MaskRCNN_ResNet50_FPN_Weights.COCO_V1: ")
    assert "cls_score.weight ([5, 1024] in the model, [91, 1024] in the weights)" in message
    assert all(key in message for key in FRESH)
    assert_loaded(model, coco, FRESH)
    assert model.roi_heads.mask_predictor.mask_fcn_logits.weight.shape[0] == 5
    report_keys = [key for key in model.state_dict() if key not in FRESH]
    assert "roi_heads.mask_predictor.conv5_mask.weight" in report_keys


def test_report_lists_what_was_loaded_and_skipped(coco: dict[str, Tensor]) -> None:
    model = maskrcnn_resnet50_fpn(weights_backbone=None, num_classes=5)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match="my file: "):
        report = load_pretrained(model, coco, source="my file")
    assert list(report.skipped) == FRESH
    assert not report.inflated
    assert set(report.loaded) | set(report.skipped) == set(model.state_dict())
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in FRESH)


def test_predictors_of_another_kind(coco: dict[str, Tensor]) -> None:
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prototypes = nn.Parameter(torch.randn(3, 1024))

    model = maskrcnn_resnet50_fpn(weights_backbone=None)
    model.roi_heads.box_predictor = Cosine()
    with pytest.warns(UserWarning, match=r"prototypes \(\[3, 1024\] in the model, missing in the"):
        report = load_pretrained(model, coco)
    assert list(report.skipped) == ["roi_heads.box_predictor.prototypes"]


@pytest.mark.parametrize("num_classes", [-1, 0, 1])
def test_impossible_number_of_classes(num_classes: int) -> None:
    with pytest.raises(
        ValueError, match=f"num_classes is {num_classes}: it includes the background"
    ):
        maskrcnn_resnet50_fpn(weights_backbone=None, num_classes=num_classes)


@pytest.mark.parametrize(
    "build, message",
    [
        (
            fasterrcnn_resnet50_fpn,
            r"unexpected roi_heads\.mask_head.*they are the keys of maskrcnn_resnet50_fpn$",
        ),
        (maskrcnn_resnet50_fpn_v2, r"missing backbone\.fpn.*the keys of maskrcnn_resnet50_fpn$"),
    ],
)
def test_another_model(build: Any, message: str, coco: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=rf"^coco\.pth: the keys are not those of.*{message}"):
        load_pretrained(build(weights_backbone=None), coco, source="coco.pth")


def test_another_model_names_the_nearest_and_the_first_differences(coco: dict[str, Tensor]) -> None:
    keys = list(coco)
    broken = {(f"other.{k}" if k in keys[100:104] else k): t for k, t in coco.items()}
    with pytest.raises(WeightsError) as raised:
        load_pretrained(maskrcnn_resnet50_fpn(weights_backbone=None), broken)
    message = str(raised.value)
    assert "nearest is maskrcnn_resnet50_fpn" in message
    assert message.count("missing backbone") >= 3
    assert "\n" not in message


def test_another_layout_is_named(coco: dict[str, Tensor]) -> None:
    body = {k.removeprefix("backbone.body."): t for k, t in coco.items() if "body" in k}
    with pytest.raises(WeightsError, match=r"in the layout of resnet50.*weights convert"):
        load_pretrained(maskrcnn_resnet50_fpn(weights_backbone=None), body)


def test_another_shape(coco: dict[str, Tensor]) -> None:
    wrong = {**coco, "rpn.head.cls_logits.weight": torch.zeros(9, 256, 1, 1)}
    with pytest.raises(
        WeightsError, match=r"rpn\.head\.cls_logits\.weight has the wrong shape: \[3"
    ):
        load_pretrained(maskrcnn_resnet50_fpn(weights_backbone=None), wrong)


def test_old_names(coco: dict[str, Tensor]) -> None:
    old = {key.replace("rpn.head.conv.0.0", "rpn.head.conv"): t for key, t in coco.items()}
    model = maskrcnn_resnet50_fpn(weights_backbone=None)
    assert load_pretrained(model, old).skipped == {}
    assert_loaded(model, coco, [])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_inflated_stem(channels: int) -> None:
    weight = torch.randn(64, 3, 7, 7)
    inflated = inflate_stem(weight, channels)
    assert inflated.shape == (64, channels, 7, 7)
    torch.testing.assert_close(inflated.sum(1), weight.sum(1))  # equal channels: equal response
    if channels >= 3:
        torch.testing.assert_close(inflated[:, :3], weight * 3 / channels)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_in_channels(
    published: MaskRCNN_ResNet50_FPN_Weights, coco: dict[str, Tensor], channels: int
) -> None:
    with pytest.warns(UserWarning, match=f"adapted to the model's input channels: {STEM}"):
        model = maskrcnn_resnet50_fpn(weights=published, in_channels=channels, min_size=64)
    assert_loaded(model, coco, [STEM])
    assert torch.equal(model.state_dict()[STEM], inflate_stem(coco[STEM], channels))
    average = (0.485 + 0.456 + 0.406) / 3
    assert model.transform.image_mean[-1] == pytest.approx(average)
    assert model.transform.image_mean[:3] == pytest.approx(
        [average] if channels == 1 else [0.485, 0.456, 0.406]
    )
    model.eval()
    assert "masks" in model([torch.rand(channels, 64, 80)])[0]
    with pytest.raises(ValueError, match=f"expected {channels} channels"):
        model([torch.rand(3, 64, 80)])


def test_backbone_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resnet_fpn_backbone(backbone_name="resnet50").body
    tensors = {**source.state_dict(), "fc.weight": torch.zeros(1000, 2048)}
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / Path(ResNet50_Weights.IMAGENET1K_V1.url).name
    torch.save(tensors, file)
    model = maskrcnn_resnet50_fpn(num_classes=2, progress=False)
    assert_loaded(model.backbone.body, tensors, [])
    assert epsilons(model) == {1e-5}
    gray = resnet_fpn_backbone(backbone_name="resnet50", weights="IMAGENET1K_V1", in_channels=1)
    assert torch.equal(gray.body.conv1.weight, inflate_stem(tensors["conv1.weight"], 1))
    with pytest.raises(WeightsError, match="another backbone"):
        resnet_fpn_backbone(backbone_name="resnet18", weights="IMAGENET1K_V1")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("build", [maskrcnn_resnet50_fpn_v2, fasterrcnn_resnet50_fpn])
def test_load_model(build: Any, suffix: str, tmp_path: Path) -> None:
    source: FasterRCNN = build(weights_backbone=None, num_classes=4)
    write_state_dict(source.state_dict(), tmp_path / f"w{suffix}")
    model = load_model(tmp_path / f"w{suffix}", min_size=64)
    assert not model.training
    assert type(model) is type(source)
    assert model.transform.min_size == (64,)
    assert_loaded(model, dict(source.state_dict()), [])


@pytest.mark.slow
def test_published_file_is_recognised_by_its_content(
    coco: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = tmp_path / "renamed.pth"
    torch.save(coco, renamed)
    monkeypatch.setattr(enums, "hash_in_name", lambda name: sha256_of(renamed)[:8])
    assert epsilons(load_model(renamed)) == {0.0}
    assert epsilons(maskrcnn_resnet50_fpn(weights=renamed)) == {0.0}
    paste = Conventions(paste=paste_masks_subpixel)  # leaves the epsilon to the weights
    assert epsilons(maskrcnn_resnet50_fpn(weights=renamed, conventions=paste)) == {0.0}
    config = with_resolved_eps(ModelConfig(weights=str(renamed)))
    renamed.rename(tmp_path / "gone.pth")  # the run's checkpoint is loaded without it
    assert epsilons(build_model(config, 91)) == {0.0}


@pytest.mark.slow
def test_another_file_of_the_published_name(coco: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / Path(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url).name
    torch.save(coco, file)
    assert epsilons(load_model(file)) == {1e-5}
    assert epsilons(build_model(ModelConfig(weights=str(file)), 91)) == {1e-5}


@pytest.mark.slow
def test_epsilon_can_be_set_for_a_converted_copy(coco: dict[str, Tensor], tmp_path: Path) -> None:
    write_state_dict(coco, tmp_path / "converted.safetensors")
    conventions = Conventions(frozen_batch_norm_eps=0.0)
    assert epsilons(load_model(tmp_path / "converted.safetensors", conventions=conventions)) == {
        0.0
    }
    config = ModelConfig(weights=str(tmp_path / "converted.safetensors"), frozen_batch_norm_eps=0.0)
    assert epsilons(build_model(config, 91)) == {0.0}


def test_load_model_without_a_model(coco: dict[str, Tensor], tmp_path: Path) -> None:
    body = {key: t for key, t in coco.items() if "body" in key}
    torch.save(body, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: weights of a ResNet-50 only"):
        load_model(tmp_path / "w.pth")
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: the keys fit no known layout"):
        load_model(tmp_path / "w.pth")


def test_predictor_replaced_as_in_torchvisions_tutorial(
    published: MaskRCNN_ResNet50_FPN_Weights,
) -> None:
    model = maskrcnn_resnet50_fpn(weights="DEFAULT")
    in_features = model.roi_heads.box_predictor.cls_score.in_features
    model.roi_heads.box_predictor = FastRCNNPredictor(in_features, 2)
    assert model.roi_heads.box_predictor.cls_score.out_features == 2


@pytest.mark.slow
def test_files_as_weights(coco: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(coco, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"w\.pth: .*not loaded"):
        model = maskrcnn_resnet50_fpn(weights=tmp_path / "w.pth", num_classes=5)
    assert_loaded(model, coco, FRESH)
    with pytest.raises(WeightsError, match=r"w\.pth: the keys are not those of this model"):
        maskrcnn_resnet50_fpn_v2(weights=tmp_path / "w.pth")
    torch.save(model.state_dict(), tmp_path / "w.pth")  # of five classes
    body = fasterrcnn_resnet50_fpn(weights_backbone=tmp_path / "w.pth")
    assert body.roi_heads.box_predictor.cls_score.out_features == 91
    assert_loaded(body.backbone.body, dict(model.backbone.body.state_dict()), [])


def test_numbers_of_classes_and_channels_come_from_the_file(tmp_path: Path) -> None:
    source = maskrcnn_resnet50_fpn(weights_backbone=None, num_classes=4, in_channels=1)
    write_state_dict(source.state_dict(), tmp_path / "w.pth")
    model = load_model(tmp_path / "w.pth")
    assert_loaded(model, dict(source.state_dict()), [])
    assert len(model.transform.image_mean) == 1
