"""detectron2's model-zoo pickles: plain containers of numpy arrays.

A pickle can name any function of any module and have it called. This reader knows only the few
names that arrays and containers need: a pickle that asks for anything else is refused, unrun.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from maskrcnn_scratch.weights.errors import WeightsError

_ALLOWED = {
    ("_codecs", "encode"),  # how protocol 2 spells bytes
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.multiarray", "_reconstruct"),  # numpy 2 renamed core
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}


class ForbiddenGlobal(pickle.UnpicklingError):
    """The pickle asks for a name that weights have no use for."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ForbiddenGlobal(f"{module}.{name}")
        return super().find_class(module, name)


def read_array_pickle(file: Path) -> Any:
    """The pickled containers and numpy arrays.

    Raises:
        ForbiddenGlobal: the pickle asks for anything but those; the message is the name asked for.
        Exception: of any type, where the bytes are damaged (as the pickle module says of itself).
    """
    with file.open("rb") as stream:
        return _ArrayUnpickler(stream, encoding="latin1").load()  # latin1: arrays out of Python 2


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
