"""Image reading: every mode becomes float RGB, and errors name the file."""

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_scratch.data.image import image_size, image_to_tensor, read_image

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_rgb_is_divided_by_255(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    tensor = read_image(tmp_path / "a.png")
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert torch.equal(tensor, torch.from_numpy(RGB).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_8_bit_mode_becomes_rgb(mode):
    image = Image.fromarray(RGB).convert(mode)
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    assert torch.equal(image_to_tensor(image), expected)


def test_alpha_is_dropped_not_blended():
    rgba = np.dstack([RGB, np.zeros((5, 7), np.uint8)])
    assert torch.equal(
        image_to_tensor(Image.fromarray(rgba, "RGBA")), image_to_tensor(Image.fromarray(RGB))
    )


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_keeps_its_depth(tmp_path, suffix):
    gray = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800
    Image.fromarray(gray).save(tmp_path / f"deep.{suffix}")
    tensor = read_image(tmp_path / f"deep.{suffix}")
    expected = torch.from_numpy(gray.astype(np.float32)) / 65535
    assert tensor.shape == (3, 5, 7)
    assert all(torch.equal(channel, expected) for channel in tensor)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    red, green, blue = read_image(tmp_path / "red.jpg").mean((1, 2))
    assert red > 0.9
    assert max(green, blue) < 0.1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(RGB).save(path, exif=exif)
    plain = torch.from_numpy(RGB).permute(2, 0, 1) / 255
    turn = {
        1: lambda t: t,
        2: lambda t: t.flip(2),
        3: lambda t: t.rot90(2, (1, 2)),
        4: lambda t: t.flip(1),
        5: lambda t: t.transpose(1, 2),
        6: lambda t: t.rot90(-1, (1, 2)),
        7: lambda t: t.rot90(2, (1, 2)).transpose(1, 2),
        8: lambda t: t.rot90(1, (1, 2)),
    }[orientation]
    tensor = read_image(path)
    assert torch.equal(tensor, turn(plain))
    assert image_size(path) == tuple(tensor.shape[1:])
    assert torch.equal(read_image(path, apply_exif=False), plain)
    assert image_size(path, apply_exif=False) == (5, 7)


def test_float_images_must_be_0_to_1():
    gray = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
    assert torch.equal(image_to_tensor(Image.fromarray(gray))[1], torch.from_numpy(gray))
    with pytest.raises(ValueError, match="0 to 1 for floats"):
        image_to_tensor(Image.fromarray(gray * 2))


def test_missing_truncated_and_not_an_image_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: no such image"):
        read_image(tmp_path / "gone.jpg")
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg: cannot be read .*truncated"):
        read_image(tmp_path / "cut.jpg")
    (tmp_path / "text.jpg").write_text("no image at all")
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=r"text\.jpg: cannot be read"):
            read(tmp_path / "text.jpg")
