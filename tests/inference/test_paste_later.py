"""Masks that are pasted or encoded when they are asked for: same results, fewer bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN, fasterrcnn_resnet50_fpn
from maskrcnn_scratch.conventions import paste_masks_subpixel
from maskrcnn_scratch.evaluation.model_results import encode_masks
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inference import Predictor, optimize, paste_later
from maskrcnn_scratch.inference.paste_later import MasksInBoxes, can_paste_later
from maskrcnn_scratch.ops import paste_masks
from maskrcnn_scratch.parity.photographs import photographs


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each tensor of which a copy on the CPU is asked for."""
    sizes: list[int] = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: sizes.append(tensor.nbytes) or cpu(tensor))
    return sizes


@pytest.fixture(scope="module")
def image() -> Tensor:
    return photographs()[0][:, ::2, ::2]


@pytest.mark.parametrize("score_threshold", [0.0, "between"])
def test_same_result_from_fewer_bytes(
    small_model: MaskRCNN, image, score_threshold, copied
) -> None:
    plain = Predictor(small_model)
    with torch.inference_mode():
        every = small_model.detect([image])[0]
    assert len(every["scores"]) > 2
    if score_threshold:
        plain.score_threshold = float(every["scores"].median())
    keep = every["scores"] >= plain.score_threshold
    (prediction,) = plain.stream([image])
    assert isinstance(prediction.found["masks"], MasksInBoxes)
    for found in (plain(image), prediction.result()):
        assert found.keys() == every.keys()
        for name, value in every.items():
            assert torch.equal(found[name], value[keep])
    assert sum(copied) < 2 * (28 * 28 * 4 + 100) * len(every["scores"]) < every["masks"].nbytes


def test_encoded_without_a_mask_of_the_images_size(small_model: MaskRCNN, image, monkeypatch):
    expected = encode_masks(Predictor(small_model)(image))
    assert len(expected["masks"]) > 2
    monkeypatch.setattr(paste_later, "paste_masks", None)
    monkeypatch.setattr(small_model.transform, "paste", paste_later.paste_masks)
    (prediction,) = Predictor(small_model).stream([image])
    found = prediction.encoded()
    assert found["masks"] == expected["masks"]
    assert all(torch.equal(found[name], expected[name]) for name in expected if name != "masks")


def test_encoded_of_any_model(small_model: MaskRCNN, image) -> None:
    """A model that is not of this package, whose masks have the image's size."""

    class Other(nn.Module):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            return small_model(images)

    (own,), (other,) = (Predictor(m).stream([image]) for m in (small_model, Other()))
    assert isinstance(other.found["masks"], Tensor)
    assert other.encoded()["masks"] == own.encoded()["masks"]


def test_only_for_models_whose_masks_nobody_else_sees(small_model: MaskRCNN) -> None:
    class Own(MaskRCNN):
        def forward(self, images, targets=None):
            return super().forward(images, targets)

    own = Own.__new__(Own)
    own.__dict__ = dict(small_model.__dict__)
    assert can_paste_later(small_model) and can_paste_later(optimize(small_model))
    assert not can_paste_later(own)
    assert not can_paste_later(nn.Linear(1, 1))
    hook = small_model.register_forward_hook(lambda *_: None)
    assert not can_paste_later(small_model)
    hook.remove()
    small_model.transform.paste = paste_masks_subpixel
    assert not can_paste_later(small_model)
    small_model.transform.paste = paste_masks


def test_a_model_without_masks() -> None:
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(
        weights_backbone=None, num_classes=3, min_size=64, box_score_thresh=0.0
    )
    assert isinstance(model, GeneralizedRCNN) and can_paste_later(model)
    assert Predictor(model)(torch.rand(3, 64, 64)).keys() == {"boxes", "labels", "scores"}
