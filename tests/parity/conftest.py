"""One test of this folder runs at a time: ResNet-50s in float64 take 2 GB per process."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest

from tests.memory import return_free_memory


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Other workers wait here; the folder above that of a worker is that of the run."""
    with (tmp_path_factory.getbasetemp().parent / "parity.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        return_free_memory()  # before they go on
