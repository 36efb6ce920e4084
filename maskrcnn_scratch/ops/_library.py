"""Finds the kernels: the compiled ones or, where none were built, the reference implementations.

The wrappers of this package call ``kernels.<op>``, which has the schema of ``csrc/schema.cpp`` in
both cases.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

from maskrcnn_scratch.ops import reference

NAMESPACE = "maskrcnn_scratch"
# Run lengths are computed on the CPU only.
OPS = tuple(name for name in reference.__all__ if not name.startswith("rle_"))
DEVICES = ("cpu", "cuda")  # that have kernels
OTHER_DEVICES = ("MPS", "XPU", "HPU", "PrivateUse1")  # dispatch keys; they run the references


def _import_extension(name: str) -> bool:
    """Whether ``maskrcnn_scratch.<name>`` was built. If it was, it must load."""
    try:
        importlib.import_module(f"{NAMESPACE}.{name}")
    except ModuleNotFoundError:
        return False
    except ImportError as error:
        raise ImportError(
            f"{NAMESPACE}.{name} was built for another PyTorch ({error}); rebuild it with "
            "pip install --no-build-isolation -e ."
        ) from error
    return True


def _raise_no_cuda_kernels(*args: Any) -> None:
    raise RuntimeError(
        "maskrcnn_scratch was built without CUDA kernels; rebuild it with "
        "MASKRCNN_BUILD=cuda pip install --no-build-isolation -e ."
    )


def _reference_for_device(op: str, device: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        _warn_without_kernels(device)
        return getattr(reference, op)(*args, **kwargs)

    return run


@functools.cache
def _warn_without_kernels(device: str) -> None:
    """Once per device."""
    warnings.warn(
        f"maskrcnn_scratch has no kernels for {device}: the pure-PyTorch reference implementations "
        "run there, which are slow",
        stacklevel=2,
    )


class _References:
    """The reference implementations; the first that is used gives a warning."""

    def __getattr__(self, name: str) -> Any:
        warnings.warn(
            "maskrcnn_scratch was built without kernels (MASKRCNN_BUILD=none): the pure-PyTorch "
            "reference implementations run instead, which are slow",
            stacklevel=3,
        )
        for op in reference.__all__:
            setattr(self, op, getattr(reference, op))
        return getattr(self, name)


compiled = _import_extension("_cpu")
kernels: Any = getattr(torch.ops, NAMESPACE) if compiled else _References()

if compiled and torch.version.cuda and not _import_extension("_cuda"):
    for _op in OPS:
        torch.library.impl(f"{NAMESPACE}::{_op}", "CUDA", _raise_no_cuda_kernels)

if compiled:
    for _op in OPS:
        for _key in OTHER_DEVICES:
            torch.library.impl(
                f"{NAMESPACE}::{_op}", _key, _reference_for_device(_op, _key.lower())
            )
