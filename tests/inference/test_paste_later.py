"""Masks pasted on the CPU, of a model that is taken to be on a GPU: same results, fewer bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN, fasterrcnn_resnet50_fpn
from maskrcnn_scratch.conventions import paste_masks_subpixel
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inference import Predictor, optimize, predictor
from maskrcnn_scratch.inference.paste_later import MasksInBoxes, can_paste_later
from maskrcnn_scratch.ops import paste_masks
from maskrcnn_scratch.parity.photographs import photographs

GPU = torch.device("cuda")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The predictor takes the model's device to be a GPU."""
    monkeypatch.setattr(
        predictor, "can_paste_later", lambda model, device: can_paste_later(model, GPU)
    )


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
    small_model: MaskRCNN, image, score_threshold, on_gpu, copied
) -> None:
    plain = Predictor(small_model)
    with torch.no_grad():
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


def test_on_the_cpu_the_model_pastes(small_model: MaskRCNN, image, monkeypatch) -> None:
    pasted = []
    monkeypatch.setattr(
        small_model.transform, "paste", lambda *a: pasted.append(1) or paste_masks(*a)
    )
    Predictor(small_model)(image)
    assert pasted


def test_only_for_models_whose_masks_nobody_else_sees(small_model: MaskRCNN) -> None:
    class Own(MaskRCNN):
        def forward(self, images, targets=None):
            return super().forward(images, targets)

    own = Own.__new__(Own)
    own.__dict__ = dict(small_model.__dict__)
    assert can_paste_later(small_model, GPU) and can_paste_later(optimize(small_model), GPU)
    assert not can_paste_later(small_model, torch.device("cpu"))
    assert not can_paste_later(own, GPU)
    assert not can_paste_later(nn.Linear(1, 1), GPU)
    hook = small_model.register_forward_hook(lambda *_: None)
    assert not can_paste_later(small_model, GPU)
    hook.remove()
    small_model.transform.paste = paste_masks_subpixel
    assert not can_paste_later(small_model, GPU)
    small_model.transform.paste = paste_masks


def test_a_model_without_masks(on_gpu) -> None:
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(
        weights_backbone=None, num_classes=3, min_size=64, box_score_thresh=0.0
    )
    assert isinstance(model, GeneralizedRCNN) and can_paste_later(model, GPU)
    assert Predictor(model)(torch.rand(3, 64, 64)).keys() == {"boxes", "labels", "scores"}
