from __future__ import annotations

import json
import os
import pickle
import sys
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn_scratch.weights import WeightsError, read_state_dict, write_state_dict

TENSORS = {
    "conv.weight": torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    "bn.num_batches_tracked": torch.tensor(3),
    "flag": torch.tensor([True, False, True]),
    "half": torch.randn(5).half(),
    "double": torch.randn(2, 3, dtype=torch.float64).T,
    "empty": torch.zeros(0, 4),
}


class Attack:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert found[key].shape == tensor.shape, key
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".pkl"])
def test_written_and_read(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    write_state_dict(TENSORS, file)
    assert_same(read_state_dict(file), TENSORS)
    assert os.listdir(tmp_path) == [file.name]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bfloat16(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    tensors = {"w": torch.randn(3).bfloat16()}
    write_state_dict(tensors, file)
    assert_same(read_state_dict(file), tensors)


def test_old_torch_format(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert_same(read_state_dict(tmp_path / "w.pth"), TENSORS)


def test_safetensors_library_agrees(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    tensors = {key: tensor.contiguous() for key, tensor in TENSORS.items()}
    write_state_dict(tensors, tmp_path / "ours.safetensors")
    assert_same(library.load_file(tmp_path / "ours.safetensors"), tensors)
    library.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"made": "elsewhere"})
    assert_same(read_state_dict(tmp_path / "theirs.safetensors"), tensors)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_numpy_pickle(tmp_path: Path, protocol: int) -> None:
    arrays = OrderedDict(w=np.arange(6, dtype=">f4").reshape(2, 3), n=np.int64(7))
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
    expected = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)}
    assert_same(read_state_dict(tmp_path / "w.pkl"), expected)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_checkpoint_is_unwrapped(tmp_path: Path, key: str) -> None:
    state = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1).state_dict()
    torch.save({key: TENSORS, "optimizer": state, "epoch": 3}, tmp_path / "w.pth")
    assert_same(read_state_dict(tmp_path / "w.pth"), TENSORS)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + key: t for key, t in TENSORS.items()}, tmp_path / "w.pth")
    assert_same(read_state_dict(tmp_path / "w.pth"), TENSORS)


def save_zip(content: object, file: Path) -> None:
    torch.save(content, file)


def save_old(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def save_pickle(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [save_zip, save_old, save_pickle])
def test_code_is_refused_and_not_run(tmp_path: Path, save: Any) -> None:
    trace = tmp_path / "trace"
    save({"model": {"w": Attack(trace)}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: refused, nothing of it was run.*system"):
        read_state_dict(tmp_path / "w.pth")
    assert not trace.exists()
    if save is save_pickle:  # the attack is real
        pickle.loads((tmp_path / "w.pth").read_bytes())
        assert trace.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_builtins_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "w.pkl").write_bytes(b"\x80\x02cbuiltins\n" + name.encode() + b"\n.")
    with pytest.raises(WeightsError, match=rf"refused.*builtins\.{name}"):
        read_state_dict(tmp_path / "w.pkl")


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"refused.*Linear.*state_dict\(\)"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
def test_half_a_file(tmp_path: Path, suffix: str, part: float) -> None:
    file = tmp_path / f"w{suffix}"
    write_state_dict(TENSORS | {"big": torch.randn(3000)}, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(WeightsError, match=rf"w\{suffix}: damaged or incomplete"):
        read_state_dict(file)


@pytest.mark.parametrize("position", range(8, 120, 7))
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_flipped_bytes_never_escape(tmp_path: Path, suffix: str, position: int) -> None:
    file = tmp_path / f"w{suffix}"
    write_state_dict(TENSORS, file)
    content = bytearray(file.read_bytes())
    content[position] ^= 0x15
    file.write_bytes(bytes(content))
    with suppress(WeightsError):  # any other exception fails the test
        read_state_dict(file)


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"\x89PNG\r\n\x1a\n" + bytes(30), b"version https://git"]
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth: not a weights file"):
        read_state_dict(tmp_path / "w.pth")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"w\.pth: no such weights file"):
        read_state_dict(tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    "content, wrong",
    [
        (torch.zeros(3), "found Tensor"),
        ({}, "found dict"),
        ([torch.zeros(3)], "found list"),
        ({"a": torch.zeros(1), "epoch": 3}, "'epoch' is a int"),
        ({0: torch.zeros(1)}, "0 is a Tensor"),
    ],
)
def test_other_contents(tmp_path: Path, content: object, wrong: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth: expected .*{wrong}"):
        read_state_dict(tmp_path / "w.pth")


def test_text_array_in_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"w": np.array(["a"])}))
    with pytest.raises(WeightsError, match=r"w\.pkl: .*the numpy type 'U1' is no plain number"):
        read_state_dict(tmp_path / "w.pkl")


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"must end in one of \.pth"):
        write_state_dict(TENSORS, tmp_path / "w.bin")


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    write_state_dict(TENSORS, file)
    before = file.read_bytes()
    with pytest.raises(OSError, match=r"w\.safetensors: .*no type for w, torch\.complex64"):
        write_state_dict({"w": torch.zeros(2, dtype=torch.complex64)}, file)
    with pytest.raises(OSError, match=r"w\.pkl: .*BFloat16"):
        write_state_dict({"w": torch.zeros(2).bfloat16()}, tmp_path / "w.pkl")
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == [file.name]


@pytest.mark.parametrize("padding", range(0, 160, 8))
def test_safetensors_whose_length_looks_like_a_pickle(tmp_path: Path, padding: int) -> None:
    tensors = {"w" + "x" * padding: torch.ones(2)}  # one of the headers is 0x80 bytes long
    write_state_dict(tensors, tmp_path / "w.safetensors")
    assert_same(read_state_dict(tmp_path / "w.safetensors"), tensors)


def test_safetensors_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "w.safetensors"
    write_state_dict(TENSORS, file)
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(WeightsError, match=rf"^{file}: .* pip install safetensors$"):
        read_state_dict(file)
    with pytest.raises(OSError, match=r"pip install safetensors"):
        write_state_dict(TENSORS, file)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [100_000], "data_offsets": [0, 400_000]}
    header = json.dumps({f"w{i}": entry for i in range(1000)}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(400_000)
    (tmp_path / "w.safetensors").write_bytes(content)  # half a megabyte that claims 400 MB
    with pytest.raises(WeightsError, match=r"w\.safetensors: damaged or incomplete"):
        read_state_dict(tmp_path / "w.safetensors")


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    tensor = torch.rand(4)
    write_state_dict({"a": tensor, "b": tensor[:2]}, tmp_path / "w.safetensors")
    assert_same(read_state_dict(tmp_path / "w.safetensors"), {"a": tensor, "b": tensor[:2]})
