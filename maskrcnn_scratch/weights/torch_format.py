"""``torch.save`` files, of today (a zip archive) and of before torch 1.6, checked before they load.

``torch.load(weights_only=True)`` runs no code, but it does not compare checksums, unpacks what a
small file inflates to, and ends the process at a tuple nested deep enough.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from maskrcnn_scratch.weights.errors import ForbiddenGlobal

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # its magic number, as a pickle
_LEGACY_PICKLES = 5  # magic number, version, system, content, names of the storages
_DEEPEST_TUPLE = 100


def is_torch_file(file: Path) -> bool:
    """Whether the first bytes are those of ``torch.save``."""
    with file.open("rb") as stream:
        return stream.read(len(_LEGACY)).startswith((_ZIP, _LEGACY))


def read_torch_file(file: Path) -> Any:
    """The content, tensors on the CPU.

    Raises:
        ForbiddenGlobal: it asks for more than tensors and plain values; the message is the name.
        Exception: of any type, where the bytes are damaged or claim to be more than the file has.
    """
    with file.open("rb") as stream:
        if stream.read(len(_ZIP)) == _ZIP:
            _check_archive(file)
        else:
            stream.seek(0)
            for _ in range(_LEGACY_PICKLES):
                _check_nesting(stream)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise
        raise ForbiddenGlobal(wanted[1]) from None


def _check_archive(file: Path) -> None:
    """Raises a ValueError unless each entry is stored as it is and has the checksum it should."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed, which torch.save does not do")
        if sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise ValueError("its entries claim more bytes than the file has")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} has another checksum than it was written with")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as content:
                    _check_nesting(content)


def _check_nesting(content: IO[bytes]) -> None:
    """Raises a ValueError for tuples so deep in each other that hashing one overflows the stack.

    Follows one pickle and notes only how deep the tuples of each value are.
    """
    stack: list[int] = []
    memo: dict[int, int] = {}
    mark = -1
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name == "MARK":
            stack.append(mark)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(argument or 0)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            taken: list[int] = []
            if pickletools.markobject in opcode.stack_before:
                while (depth := stack.pop()) != mark:
                    taken.append(depth)
            plain = [kind for kind in opcode.stack_before if kind not in _UP_TO_MARK]
            taken += [stack.pop() for _ in plain]
            depth = max(taken, default=0) + 1 if name in _NESTING else 0
            if depth > _DEEPEST_TUPLE:
                raise ValueError(f"tuples are nested more than {_DEEPEST_TUPLE} deep")
            stack += [depth] * len(opcode.stack_after)


_UP_TO_MARK = (pickletools.markobject, pickletools.stackslice)
_NESTING = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX"}
