"""Files of ``torch.save`` are compared with their checksums, and claim no more than they have."""

from __future__ import annotations

import copy
import random
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.weights import WeightsError, read_state_dict
from maskrcnn_scratch.weights.loading import load_pretrained
from tests.messages import check_one_line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w.pt"
    torch.save({"model": {"a.weight": torch.rand(500), "b.weight": torch.zeros(5000)}}, path)
    return path


def rewrite(file: Path, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Replaces parts of the archive, with the checksums that they then have."""
    with zipfile.ZipFile(file) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, changes.get(name.partition("/")[2], content))


def test_flipped_bits_are_found(file: Path) -> None:
    whole = file.read_bytes()
    expected = load_checkpoint(file)["model"]
    draw = random.Random(0)
    found = 0
    for _ in range(60):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        for read in (lambda: load_checkpoint(file)["model"], lambda: read_state_dict(file)):
            try:
                loaded = read()
            except (ValueError, WeightsError) as error:
                check_one_line(error, file)
                found += 1
            else:  # the bit was in the archive's padding
                assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert found > 60


def test_a_changed_value_is_named(file: Path) -> None:
    content = file.read_bytes()
    values = load_checkpoint(file)["model"]["a.weight"].numpy().tobytes()
    at = content.index(values)
    file.write_bytes(content[:at] + b"\1\2\3\4" + content[at + 4 :])
    with pytest.raises(ValueError, match=r"w\.pt: .*w/data/0 has another checksum"):
        load_checkpoint(file)
    with pytest.raises(WeightsError, match=r"w\.pt: .*w/data/0 has another checksum"):
        read_state_dict(file)


def test_compressed_archives_are_refused_unread(file: Path) -> None:
    rewrite(file, {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match=r"w\.pt: .*is compressed"):
        read_state_dict(file)


@pytest.mark.parametrize("legacy", [False, True])
def test_deep_tuples_do_not_overflow_the_stack(file: Path, legacy: bool) -> None:
    deep = b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"Ns."  # a key that takes hashing
    if legacy:
        torch.save({}, file, _use_new_zipfile_serialization=False)
        content = file.read_bytes()
        file.write_bytes(content.replace(b"\x80\x02}q\x00.\x80\x02]", deep + b"\x80\x02]"))
    else:
        rewrite(file, {"data.pkl": deep})
    with pytest.raises(WeightsError, match="tuples are nested more than 100 deep"):
        read_state_dict(file)


def test_a_tensor_of_more_values_than_the_file(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**12)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt: 'w' has more values than the file"):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, device="meta"),
    ],
)
def test_other_tensors(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"w": tensor}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt: 'w' is no plain tensor"):
        read_state_dict(tmp_path / "w.pt")


def test_values_that_are_not_finite_are_one_warning(small_model: torch.nn.Module) -> None:
    weights = {key: tensor.clone() for key, tensor in small_model.state_dict().items()}
    keys = [key for key, tensor in weights.items() if tensor.is_floating_point()]
    weights[keys[3]].view(-1)[0] = float("nan")
    weights[keys[5]].view(-1)[0] = float("inf")
    model = copy.deepcopy(small_model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_pretrained(model, weights, source="w.pt")
    (warning,) = caught
    assert str(warning.message) == (f"w.pt: NaN or infinite values in {keys[3]} and 1 more tensors")
