"""Tests of files that may not be read or written, also as root."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

VERSION = 0x20080522  # of the structures of Linux's capget() and capset(): capabilities(7)
OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
EFFECTIVE = 0  # of two times (effective, permitted, inheritable)


@contextmanager
def permissions_apply(folder: Path) -> Iterator[None]:
    """The permissions of files hold for this thread, and for processes that it forks.

    Root then can do with its files what any user can do with theirs. Skips the test where that is
    not possible. ``folder`` is one to try it in.
    """
    secret = folder / "no permissions"
    secret.touch(mode=0)
    libc = ctypes.CDLL(None) if hasattr(os, "geteuid") and os.geteuid() == 0 else None
    header = (ctypes.c_uint32 * 2)(VERSION, 0)
    before, after = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    if hasattr(libc, "capset"):
        libc.capget(header, before)
        after[:] = before[:]
        after[EFFECTIVE] &= ~OVERRIDES
        libc.capset(header, after)
    try:
        with suppress(PermissionError):
            secret.open().close()
            pytest.skip("this user may read every file")
        yield
    finally:
        if hasattr(libc, "capset"):
            libc.capset(header, before)
        secret.unlink()
