"""A lock on the folder of a run: two processes never train into one folder."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

LOCK_FILE = "run.lock"
_LOCKED_BYTE = 2**20  # beyond the text: Windows refuses to read locked bytes


class RunLockedError(RuntimeError):
    """Another process trains into the folder. The message names the process."""


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is created if it is missing.

    The operating system releases the lock when the process ends, also if it is killed. The file
    remains and is used again. Child processes do not hold the lock. On a file system without locks
    there is a warning instead.

    Raises:
        RunLockedError: another process holds the lock.
        OSError: the folder or the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_FILE, "a+", encoding="utf-8") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                warnings.warn(
                    f"{folder}: cannot be locked against a second run here ({error.strerror})",
                    stacklevel=3,
                )
                yield
                return
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunLockedError(
                f"{folder} is in use by {holder}: stop it first, or choose another --output"
            ) from None
        file.truncate(0)
        started = datetime.now().isoformat(" ", "seconds")
        holder = f"process {os.getpid()} on {socket.gethostname()}, started {started}\n"
        try:
            left = holder.encode()
            while left:
                left = left[os.write(file.fileno(), left) :]
        except OSError as error:
            raise OSError(f"{file.name}: could not be written ({error.strerror})") from error
        yield


def _lock(file: IO[str]) -> None:
    """Locks a file exclusively until it is closed; raises an OSError if it is locked."""
    try:
        import fcntl
    except ImportError:
        import msvcrt  # Windows

        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    else:
        # Record locks belong to a process. flock would be inherited by the data loader's workers,
        # which outlive a killed parent for some seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKED_BYTE)
