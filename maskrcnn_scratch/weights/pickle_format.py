"""detectron2's model-zoo pickles: plain containers of numpy arrays.

A pickle is a program: it can name any function of any module and have it called, and numpy's own
constructors build arrays over memory that is not theirs. Nothing of it is run here. ``pickletools``
reads the instructions, and this module follows the few that containers and arrays need; the names
of numpy stand for functions of this module, which accept plain numeric types and bytes of exactly
the length that type and shape ask for. Everything else is refused.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from torch import Tensor

from maskrcnn_scratch.weights.errors import ForbiddenGlobal, WeightsError

_NUMERIC = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_MOST_DIMENSIONS = 64  # numpy's and torch's limit
_LATIN1 = ("latin1", "latin-1")
_MARK = object()


class _Name(NamedTuple):
    """A function that the pickle names; a key of ``_FUNCTIONS``."""

    module: str
    name: str


@dataclass
class _DType:
    """A number's type; byte order and state come with a later instruction."""

    name: str
    order: str = "="

    def build(self, state: Any) -> None:
        _check(
            type(state) is tuple
            and state[:1] == (3,)
            and state[1:2] in (("<",), (">",), ("|",), ("=",))
            and state[2:] == (None, None, None, -1, -1, 0),
            f"the numpy type {self.name} is more than a plain number",
        )
        self.order = state[1]

    def array(self, data: Any, shape: Any, column_major: Any = False) -> np.ndarray:
        """The bytes as an array that shares their memory."""
        _check(
            type(shape) is tuple
            and len(shape) <= _MOST_DIMENSIONS
            and all(type(side) is int and side >= 0 for side in shape),
            "the shape of an array is no list of sizes",
        )
        if type(data) is str:  # Python 2
            data = data.encode("latin1")
        dtype = np.dtype(self.order + self.name)
        size = math.prod(shape) * dtype.itemsize
        _check(
            type(data) in (bytes, bytearray) and len(data) == size,
            f"an array of {size} bytes is not filled by what stands there",
        )
        if self.name == "b1":  # a bool that is neither 0 nor 1 is undefined behaviour
            values = np.frombuffer(data, np.uint8) != 0
        else:
            values = np.frombuffer(data, dtype)
        return values.reshape(shape, order="F" if column_major else "C")


@dataclass
class _Array:
    """An array whose contents come with a later instruction."""

    values: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _check(type(state) is tuple and len(state) == 5, "the state of an array is damaged")
        _, shape, dtype, column_major, data = state
        _check(type(dtype) is _DType, "an array has no type")
        self.values = dtype.array(data, shape, column_major)


def read_array_pickle(file: Path) -> Any:
    """The pickled containers, numbers, texts and numpy arrays.

    Returns:
        dicts (with str or int keys), lists, tuples and values; arrays are at most two dicts deep.

    Raises:
        ForbiddenGlobal: the pickle asks for anything but those; the message is the name asked for.
        Exception: of any type, where the bytes are damaged.
    """
    with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
        reader = _Reader()
        for opcode, argument, _ in pickletools.genops(content):  # type: ignore[arg-type]
            reader.follow(opcode.name, argument)
        (result,) = reader.stack
        _put_arrays(result, len(content))
    return result


class _Reader:
    """Follows a pickle's instructions on a stack of plain values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def follow(self, opcode: str, argument: Any) -> None:
        """One instruction, by its name in ``pickletools``."""
        stack = self.stack
        if opcode in _VALUES:
            _check(
                type(argument) is not int or abs(argument) < 2**64, "a number of more than 64 bits"
            )
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode]())
        elif opcode in ("PROTO", "FRAME", "STOP"):
            pass
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(opcode[-1])
            _check(len(stack) >= count, "the stack is empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif opcode == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif opcode == "APPEND":
            value = stack.pop()
            self._top(list).append(value)
        elif opcode == "APPENDS":
            values = self._since_mark()
            self._top(list).extend(values)
        elif opcode == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._top(dict).update(_pairs([(key, value)]))
        elif opcode == "SETITEMS":
            items = self._since_mark()
            self._top(dict).update(_pairs(zip(items[::2], items[1::2], strict=True)))
        elif opcode == "GLOBAL":
            self._name(*argument.split(" ", 1))
        elif opcode == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            self._name(module, name)
        elif opcode == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            _check(
                type(function) is _Name and type(arguments) is tuple, "what is called is no name"
            )
            stack.append(_FUNCTIONS[function](*arguments))
        elif opcode == "BUILD":
            state = stack.pop()
            _check(type(stack[-1]) in (_DType, _Array), "what is built is no array")
            stack[-1].build(state)
        else:
            raise ForbiddenGlobal(f"the instruction {opcode}")

    def _name(self, module: Any, name: Any) -> None:
        _check(type(module) is str and type(name) is str, "a name is no text")
        asked_for = _Name(module, name)
        if asked_for not in _FUNCTIONS:
            raise ForbiddenGlobal(f"{module}.{name}")
        self.stack.append(asked_for)

    def _top(self, kind: type) -> Any:
        _check(type(self.stack[-1]) is kind, f"items are added to what is no {kind.__name__}")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]


def _pairs(pairs: Any) -> Iterator[tuple[str | int, Any]]:
    for key, value in pairs:
        _check(type(key) in (str, int), "a key is neither text nor number")
        yield key, value


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return dict(_pairs(pairs))


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 spells bytes."""
    _check(type(text) is str and encoding in _LATIN1, "bytes are spelled in another encoding")
    return bytes(text.encode("latin1"))


def _no_bytes() -> bytes:
    """How protocol 2 spells no bytes."""
    return b""


def _dtype(name: Any, align: Any = False, copy: Any = False) -> _DType:
    _check(type(name) is str, "the name of a numpy type is no text")
    _check(name in _NUMERIC, f"the numpy type {name[:20]!r} is no plain number")
    return _DType(name)


def _reconstruct(array_type: Any, shape: Any, kind: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, data: Any) -> _Array:
    _check(type(dtype) is _DType, "a number has no type")
    return _Array(dtype.array(data, ()))


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    _check(type(dtype) is _DType and order in ("C", "F", "K"), "an array has no type or order")
    array = dtype.array(data, shape, order == "F")
    if axes is None:
        return _Array(array)
    _check(type(axes) is tuple and all(type(axis) is int for axis in axes), "axes are damaged")
    return _Array(array.transpose(axes))


def _not_called(*_: Any) -> Any:
    raise ValueError("an array is made without its contents")


# Instructions that push their argument, and those that push something of their own.
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_FUNCTIONS: dict[_Name, Callable[..., Any]] = {
    _Name("_codecs", "encode"): _encode,
    _Name("__builtin__", "bytes"): _no_bytes,
    _Name("collections", "OrderedDict"): _ordered_dict,
    _Name("numpy", "dtype"): _dtype,
    _Name("numpy", "ndarray"): _not_called,
    **{
        _Name(f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")  # numpy 2 renamed it
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


def _put_arrays(content: Any, bytes_left: int) -> None:
    """Replaces what stands for arrays by the arrays, in a dict and in the dicts inside it.

    Names may share an array; counted for each name, the arrays have no more bytes than the file.
    """
    outer = content if type(content) is dict else {}
    inner = {id(value): value for value in outer.values() if type(value) is dict}
    for values in {id(outer): outer, **inner}.values():
        for key, value in values.items():
            if type(value) is _Array:
                if value.values is None:
                    raise ValueError("an array has no contents")
                bytes_left -= value.values.nbytes
                _check(bytes_left >= 0, "the arrays have more bytes than the file")
                values[key] = value.values


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def write_array_pickle(tensors: Mapping[str, Tensor], out: IO[bytes]) -> None:
    """Writes what detectron2's checkpointer takes for a model-zoo file.

    Raises:
        WeightsError: a type that numpy does not have.
    """
    try:
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    except TypeError as error:
        raise WeightsError(f"a pickle of arrays cannot hold the weights: {error}") from None
    pickle.dump({"model": arrays, "__author__": "maskrcnn_scratch"}, out, protocol=4)
