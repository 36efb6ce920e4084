"""A pickle of arrays reaches no constructor of numpy, no foreign memory, and not much memory."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from maskrcnn_scratch.weights import WeightsError, read_state_dict
from maskrcnn_scratch.weights.pickle_format import read_array_pickle


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def dtype(
    name: str,
    state: bytes = b"(K\x03" + b"X\x01\0\0\0<" + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t",
) -> bytes:
    return b"cnumpy\ndtype\n" + text(name) + b"\x89\x88\x87R" + state + b"b"


FLOAT = dtype("f4")
OBJECTS = (
    b"(K\x03X\x01\0\0\0|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft"  # numpy's flags of objects
)
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
SCALAR = b"cnumpy.core.multiarray\nscalar\n"
BYTES = b"C\x08AAAAAAAA"


@pytest.mark.parametrize(
    "value, reason",
    [
        (SCALAR + dtype("O8", OBJECTS) + BYTES + b"\x86R", "'O8' is no plain number"),
        (SCALAR + dtype("f4", OBJECTS) + BYTES + b"\x86R", "f4 is more than a plain number"),
        (SCALAR + dtype("f8,O8") + BYTES + b"\x86R", "'f8,O8' is no plain number"),
        (SCALAR + dtype("V8") + BYTES + b"\x86R", "'V8' is no plain number"),
        (SCALAR + FLOAT + BYTES + b"\x86R", "an array of 4 bytes is not filled"),
        (b"cnumpy\nndarray\n(K\x09K\x09tcnumpy\ndtype\n\x86R", "without its contents"),
        (RECONSTRUCT + b"cnumpy\nndarray\nK\x09\x85C\x01b\x87R", "no contents"),
        (b"c_codecs\nencode\n" + text("x") + text("zlib") + b"\x86R", "in another encoding"),
        (b"cos\nsystem\n" + text("true") + b"\x85R", "asks for os.system"),
        (b"c__builtin__\nbytes\nK\x09\x85R", "damaged or incomplete"),
        (b"\x8a\x60" + b"\x7f" * 0x60, "a number of more than 64 bits"),
        (b"ccollections\nOrderedDict\n)R}b", "what is built is no array"),
        (b"ccollections\nOrderedDict\n)\x81", "asks for the instruction NEWOBJ"),
        (b"}" + b")" + b"\x85" * 200_000 + b"Ns", "a key is neither text nor number"),
        (b"Nr\xff\xff\xff\x7f", "'w' is a NoneType"),  # a memo of 2**31 entries would be 16 GB
    ],
)  # fmt: skip
def test_refused(value: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "w.pkl"
    file.write_bytes(b"\x80\x02}" + text("w") + value + b"s.")
    with pytest.raises(WeightsError, match=f"^{file}: .*{reason}") as error:
        read_state_dict(file)
    assert "\n" not in str(error.value)


def test_names_that_share_an_array_have_no_more_bytes_than_the_file(tmp_path: Path) -> None:
    array = np.zeros(100_000, np.float32)
    file = tmp_path / "w.pkl"
    file.write_bytes(pickle.dumps({f"w{i}": array for i in range(1000)}))
    with pytest.raises(WeightsError, match="the arrays have more bytes than the file"):
        read_state_dict(file)


NUMBERS = arrays.arrays(
    dtype=st.one_of(
        arrays.integer_dtypes(endianness="?"),
        arrays.unsigned_integer_dtypes(endianness="?"),
        arrays.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
        arrays.boolean_dtypes(),
    ),
    shape=arrays.array_shapes(min_dims=0, min_side=0),
)


@settings(max_examples=200, deadline=None)
@given(array=NUMBERS, turned=st.booleans(), protocol=st.integers(2, 5))
def test_every_array_of_numbers_is_read(
    array: Any, turned: bool, protocol: int, tmp_path_factory: Any
) -> None:
    array = array.T if turned else array
    file = tmp_path_factory.mktemp("pickle") / "w.pkl"
    file.write_bytes(pickle.dumps({"w": array}, protocol))
    found = read_array_pickle(file)["w"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
