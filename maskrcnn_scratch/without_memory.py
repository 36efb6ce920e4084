"""Modules whose parameters have shapes but no memory, or memory but no values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_RANDOM = {Tensor.normal_, Tensor.uniform_}


@contextmanager
def without_memory() -> Iterator[None]:
    """New tensors are on the meta device, and are not initialised with random numbers.

    With them, PyTorch would import its compiler, which takes longer than building a model.
    """
    with torch.device("meta"), without_random_numbers():
        yield


@contextmanager
def without_random_numbers() -> Iterator[None]:
    """New parameters have any values: for models that get all of their weights afterwards."""
    with _SkipRandomNumbers():
        yield


class _SkipRandomNumbers(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
