"""The readers of untrusted bytes, each with small valid inputs to start from."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.weights import read_state_dict
from maskrcnn_scratch.weights.safetensors_format import write_safetensors
from tests.messages import check_one_line

REFUSALS = (ValueError, OSError, RuntimeError)  # what the command line turns into one line


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        seeds: valid inputs.
        tokens: pieces that mean something to it.
        read: takes the bytes; raises one of ``REFUSALS``, with the file's name, or nothing.
    """

    seeds: Sequence[bytes]
    tokens: Sequence[bytes]
    read: Callable[[bytes, Path], object]


def read_weights(data: bytes, folder: Path) -> None:
    file = folder / "input.bin"
    file.write_bytes(data)
    try:
        tensors = read_state_dict(file)
    except REFUSALS as error:
        check_one_line(error, file)
        raise
    # Memory that is not the tensors' own would be read here.
    assert all(isinstance(tensor.double().sum().item(), float) for tensor in tensors.values())
    assert sum(tensor.numel() for tensor in tensors.values()) <= 8 * len(data)


def pickle_target() -> Target:
    arrays = OrderedDict(
        w=np.arange(6, dtype=">f4").reshape(2, 3), n=np.int64(7), flag=np.array([True, False])
    )
    nested = {
        "model": {"a": np.ones((2, 2, 2), "f2").transpose(2, 0, 1)},
        "__author__": "x",
        "k": [1.5],
    }
    seeds = [pickle.dumps(c, protocol) for c in (arrays, nested) for protocol in (2, 3, 4, 5)]
    tokens = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
    names = ("O", "O8", "V16", "S4", "U1", "M8[s]", "c16", "f8,i4", "|", ">", "=")
    tokens += [b"\x8c" + bytes([len(name)]) + name.encode() for name in names]
    tokens += [b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n"]
    tokens += [b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n"]
    tokens += [
        b"\x85" * 1000,
        b"2" * 1000,
        b"K\x3f",
        b"J\xff\xff\xff\xff",
        b"\x8c\x01O\x89\x88\x87R",
    ]
    return Target(seeds, tokens, read_weights)


def safetensors_target() -> Target:
    def seed(tensors: dict[str, torch.Tensor]) -> bytes:
        stream = io.BytesIO()
        write_safetensors(tensors, stream)
        return stream.getvalue()

    seeds = [seed({"a": torch.ones(2, 3), "b": torch.zeros(4).half()}), seed({"w": torch.eye(2)})]
    names = (
        "F32",
        "BF16",
        "C64",
        "F8_E5M2",
        "F4",
        "shape",
        "data_offsets",
        "[0,",
        ",-1]",
        "1e9",
        "{",
    )
    return Target(seeds, [name.encode() for name in names], read_weights)


def torch_target() -> Target:
    """The pickle inside the archive of ``torch.save``; the checksums are made to fit."""
    content = {
        "model": OrderedDict(a=torch.ones(2, 3), b=torch.nn.Parameter(torch.zeros(3).half())),
        "epoch": 3,
        "names": {1: "cat"},
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    archive = zipfile.ZipFile(stream)
    parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    seed = parts.pop("archive/data.pkl")

    def read(data: bytes, folder: Path) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as changed:
            changed.writestr("archive/data.pkl", data)
            for name, part in parts.items():
                changed.writestr(name, part)
        read_weights(file.getvalue(), folder)
        read_run(file.getvalue(), folder)

    return Target([seed], pickle_target().tokens, read)


def torch_legacy_target() -> Target:
    stream = io.BytesIO()
    torch.save({"w": torch.ones(3)}, stream, _use_new_zipfile_serialization=False)
    return Target([stream.getvalue()], pickle_target().tokens, read_weights)


def read_run(data: bytes, folder: Path) -> None:
    file = folder / "input.bin"
    file.write_bytes(data)
    try:
        load_checkpoint(file)
    except REFUSALS as error:
        check_one_line(error, file)
        raise


def read_segmentation(data: bytes, folder: Path) -> None:
    """JSON as an annotation's segmentation, on an image of 20 x 30."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    size = (20, 30)
    mask = rle.decode(rle.from_segmentation(value, size))
    assert mask.shape == size and mask.max() <= 1


def rle_target() -> Target:
    masks = [
        np.eye(20, 30, dtype=np.uint8),
        np.zeros((20, 30)),
        np.random.default_rng(0).random((20, 30)) > 0.5,
    ]
    seeds = [json.dumps(rle.encode(mask)).encode() for mask in masks]
    seeds.append(b'{"size": [20, 30], "counts": [20, 5, 575]}')
    tokens = [
        b"4294967296",
        b"-1",
        b"18446744073709551616",
        b"oooooooo",
        b"0" * 20,
        b"[20, 30]",
        b"1e9",
    ]
    return Target(seeds, tokens, read_segmentation)


def polygon_target() -> Target:
    seeds = [b"[[1, 2, 8, 2, 8.5, 9.25]]", b"[[0, 0, 30, 0, 30, 20, 0, 20], [3, 3, 9, 3, 9, 9]]"]
    tokens = [
        b"1e6",
        b"-1e6",
        b"1e300",
        b"NaN",
        b"Infinity",
        b"-0.0",
        b"2147483648",
        b"{}",
        b'"a"',
        b"[",
        b"],[",
    ]
    return Target(seeds, tokens, read_segmentation)


TARGETS: dict[str, Callable[[], Target]] = {
    "pickle": pickle_target,
    "safetensors": safetensors_target,
    "rle": rle_target,
    "polygon": polygon_target,
    "torch": torch_target,
    "torch-legacy": torch_legacy_target,
}


def in_a_folder(target: Target, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target.read(data, Path(folder))
