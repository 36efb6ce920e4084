"""The published weights and their presets against torchvision's."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_scratch import weights as ours
from maskrcnn_scratch.weights.presets import ObjectDetection

torchvision = pytest.importorskip("torchvision")
THEIRS = {
    **vars(torchvision.models.detection),
    "ResNet50_Weights": torchvision.models.ResNet50_Weights,
}
NAMES = [
    "MaskRCNN_ResNet50_FPN_Weights",
    "MaskRCNN_ResNet50_FPN_V2_Weights",
    "FasterRCNN_ResNet50_FPN_Weights",
    "FasterRCNN_ResNet50_FPN_V2_Weights",
    "ResNet50_Weights",
]


@pytest.mark.parametrize("name", NAMES)
def test_same_metadata(name: str) -> None:
    mine, theirs = getattr(ours, name), THEIRS[name]
    assert set(mine.__members__) == set(theirs.__members__)
    for member in mine.__members__:
        assert mine[member].name == theirs[member].name, "an alias of another member"
        assert mine[member].url == theirs[member].url
        assert repr(mine[member]) == repr(theirs[member])
        meta = mine[member].meta
        assert meta == {key: theirs[member].meta[key] for key in meta}
        assert {"categories", "num_params", "recipe", "_metrics"} <= set(meta)


def test_verify_accepts_members_and_names() -> None:
    weights = ours.MaskRCNN_ResNet50_FPN_Weights
    assert weights.verify(None) is None
    for accepted in (
        weights.COCO_V1,
        "COCO_V1",
        "DEFAULT",
        "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
        THEIRS["MaskRCNN_ResNet50_FPN_Weights"].DEFAULT,
    ):
        assert weights.verify(accepted) is weights.COCO_V1
    with pytest.raises(ValueError, match=r"no member 'COCO_V3' \(it has COCO_V1, DEFAULT;"):
        weights.verify("COCO_V3")
    for wrong in (ours.ResNet50_Weights.DEFAULT, True, THEIRS["ResNet50_Weights"].DEFAULT):
        with pytest.raises(TypeError, match="expected MaskRCNN_ResNet50_FPN_Weights"):
            weights.verify(wrong)


def test_copies_and_pickles_are_the_same_member() -> None:
    member = ours.ResNet50_Weights.IMAGENET1K_V2
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member


def test_a_file_in_the_cache_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "resnet50-0676ba61.pth"
    torch.save({"conv1.weight": torch.ones(2)}, file)
    state_dict = ours.ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    assert state_dict["conv1.weight"].tolist() == [1, 1]


def images() -> list[Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 417, 3), np.uint8)
    image = Image.fromarray(pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    return [image, image.rotate(90, expand=True), tensor, tensor[None], tensor / 255]


@pytest.mark.parametrize("image", images(), ids=["PIL", "tall PIL", "uint8", "batch", "float"])
@pytest.mark.parametrize("name", NAMES)
def test_same_input_transform(name: str, image: Any) -> None:
    for member in getattr(ours, name).__members__:
        mine, theirs = getattr(ours, name)[member], THEIRS[name][member]
        assert torch.equal(mine.transforms()(image), theirs.transforms()(image))


def test_detection_preset_accepts_grayscale_16_bit_and_binary_images() -> None:
    preset = ObjectDetection()
    assert preset(Image.new("L", (5, 4), 51)).tolist() == torch.full((1, 4, 5), 0.2).tolist()
    sixteen_bit = Image.fromarray(np.full((4, 5), 65535, np.uint16))
    assert torch.equal(preset(sixteen_bit), torch.ones(1, 4, 5))
    assert torch.equal(preset(Image.new("1", (5, 4), 1)), torch.ones(1, 4, 5))
    with pytest.raises(ValueError, match="palette"):
        preset(Image.new("P", (5, 4)))
