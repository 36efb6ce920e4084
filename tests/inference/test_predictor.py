"""Every kind of image reaches the model as the same tensor, and bad ones are named."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from maskrcnn_scratch.inference import Predictor
from maskrcnn_scratch.inference.predictor import to_image_tensor

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
EXPECTED = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255  # [3, 6, 8]


class Recorder(nn.Module):
    """Finds three things in every image, and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = []

    def forward(self, images):
        assert not self.training and torch.is_inference_mode_enabled()
        self.calls.append(images)
        return [
            {
                "boxes": torch.arange(12.0).reshape(3, 4),
                "labels": torch.tensor([1, 2, 3]),
                "scores": torch.tensor([0.9, 0.5, 0.1], device=image.device),
                "masks": torch.rand(3, 1, *image.shape[1:]),
            }
            for image in images
        ]


@pytest.fixture
def kinds(tmp_path):
    """The same picture in every kind."""
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "picture.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    return {
        "path": tmp_path / "picture.png",
        "string": str(tmp_path / "picture.png"),
        "turned file": tmp_path / "turned.png",
        "turned PIL": Image.open(tmp_path / "turned.png"),
        "PIL": image,
        "PIL with alpha": image.convert("RGBA"),
        "array": PIXELS,
        "array with alpha": np.dstack([PIXELS, PIXELS[:, :, 0]]),
        "array, not contiguous": np.ascontiguousarray(PIXELS[::-1])[::-1],
        "float tensor": EXPECTED,
        "double tensor": EXPECTED.double(),
        "uint8 tensor": torch.from_numpy(PIXELS).permute(2, 0, 1),
    }


def test_every_kind_gives_the_model_the_same(kinds):
    model = Recorder()
    predictor = Predictor(model)
    for kind, image in kinds.items():
        predictor(image)
        (given,) = model.calls.pop()
        assert given.dtype == torch.float32, kind
        torch.testing.assert_close(given, EXPECTED, rtol=0, atol=1e-6, msg=kind)


def test_grayscale_becomes_three_channels():
    gray = PIXELS[:, :, 0]
    expected = torch.from_numpy(gray).expand(3, -1, -1) / 255
    for image in (gray, gray[:, :, None], Image.fromarray(gray)):
        assert torch.equal(to_image_tensor(image), expected)


def test_a_list_is_one_batch_and_gives_a_list():
    model = Recorder()
    results = Predictor(model)([PIXELS, Image.new("RGB", (3, 5))])
    assert [r["masks"].shape for r in results] == [(3, 1, 6, 8), (3, 1, 5, 3)]
    assert len(model.calls) == 1
    assert Predictor(model)([]) == [] and len(model.calls) == 1
    assert isinstance(Predictor(model)(PIXELS), dict)


def test_score_threshold_applies_to_all_fields():
    result = Predictor(Recorder(), score_threshold=0.5)(PIXELS)
    assert result["labels"].tolist() == [1, 2]
    assert {key: len(value) for key, value in result.items()} == dict.fromkeys(result, 2)


def test_device_moves_model_and_images():
    model = Recorder()
    predictor = Predictor(model, device="meta")
    assert model.weight.device.type == "meta"
    with pytest.raises(NotImplementedError):  # results of this device cannot be brought to the CPU
        predictor(PIXELS)
    assert model.calls[0][0].device.type == "meta"


def test_wrong_score_threshold():
    with pytest.raises(ValueError, match=r"score_threshold is 1\.5"):
        Predictor(Recorder(), score_threshold=1.5)


@pytest.mark.parametrize(
    "image, message",
    [
        (torch.full((3, 4, 4), float("nan")), "image holds NaN or infinite pixels"),
        (torch.tensor([0.0, float("inf")]).expand(3, 4, 2), "image holds NaN or infinite pixels"),
        (EXPECTED * 255, r"image holds values from .* to 2\d\d; the model takes 0 to 1"),
        ((EXPECTED - 0.45) / 0.225, "normalises by itself"),
        (EXPECTED[None], r"image is a tensor \[1, 3, 6, 8\]; \[C, H, W\] is needed"),
        (torch.zeros(3, 0, 5), r"image has no pixels: shape \[3, 0, 5\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "image is a tensor of torch.int64"),
        (PIXELS / 255, "image is a numpy array of float64; uint8 is needed"),
        (PIXELS.transpose(2, 0, 1), r"image is a numpy array \[3, 6, 8\]; \[H, W, 3\]"),
        (7, "image is a int; it must be"),
    ],
)
def test_bad_images_are_named(image, message):
    model = Recorder()
    with pytest.raises((TypeError, ValueError), match=message):
        Predictor(model)(image)
    with pytest.raises((TypeError, ValueError), match=message.replace("image", r"images\[1\]", 1)):
        Predictor(model)([PIXELS, image])
    assert not model.calls


def test_bad_files_are_named(tmp_path):
    predictor = Predictor(Recorder())
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        predictor(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png"):
        predictor(tmp_path / "text.png")
    Image.fromarray(PIXELS).resize((200, 200)).save(tmp_path / "whole.jpg")
    half = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(half[: len(half) // 2])
    with pytest.raises(ValueError, match=r"half\.jpg"):
        predictor([tmp_path / "whole.jpg", tmp_path / "half.jpg"])


def test_a_model_with_a_mean_of_0_to_255_takes_such_pixels():
    model = Recorder()
    model.transform = nn.Module()
    model.transform.image_mean = [123.7, 116.3, 103.5]
    Predictor(model)(EXPECTED * 255)
    assert len(model.calls) == 1


def test_the_real_model(small_model, photographs):
    result = Predictor(small_model, score_threshold=0.1)(photographs["cat"])
    height, width = photographs["cat"].shape[:2]
    count = len(result["scores"])
    assert count > 0 and result["scores"].min() >= 0.1
    assert result["masks"].shape == (count, 1, height, width)
    with torch.inference_mode():
        direct = small_model([to_image_tensor(photographs["cat"])])[0]
    assert torch.equal(direct["boxes"][:count], result["boxes"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_decoded_on_the_device_is_the_same_picture(tmp_path, orientation):
    ramp = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    picture = Image.fromarray(np.dstack([ramp, ramp[::-1], ramp[:, ::-1]]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "picture.JPG"
    picture.save(path, quality=95, exif=exif)
    models = Recorder(), Recorder()
    Predictor(models[0])(path)
    Predictor(models[1], decode_on_device=True)(path)
    (expected,), (found,) = models[0].calls[0], models[1].calls[0]
    assert found.shape == expected.shape and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=6 / 255, rtol=0)


def test_files_that_are_no_jpeg_are_named_when_decoded_on_the_device(tmp_path):
    predictor = Predictor(Recorder(), decode_on_device=True)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg: no such image file"):
        predictor(tmp_path / "missing.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg: cannot be read as a JPEG"):
        predictor(tmp_path / "broken.jpg")
    Image.fromarray(PIXELS).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.jpg: cannot be read as a JPEG"):
        predictor(tmp_path / "cut.jpg")
