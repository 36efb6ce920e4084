"""The lock of a run's folder: held by one process, free after a kill, on every platform."""

import errno
import fcntl
import os
import signal
import sys
import types

import pytest

from maskrcnn_scratch.training.run_lock import RunLockedError, lock_run
from tests.training import toy


def hold_and_die(folder, child_seconds):
    """Is killed while it holds the lock and has a child process, as the data loader's workers."""
    with lock_run(folder):
        if os.fork() == 0:
            signal.alarm(child_seconds)
            signal.pause()
        os.kill(os.getpid(), signal.SIGKILL)


def expect_locked(folder, pid):
    with pytest.raises(RunLockedError, match=rf"{folder} is in use by process {pid} on \S+, sta"):
        with lock_run(folder):
            pass


def test_second_process_is_refused(tmp_path):
    with lock_run(tmp_path / "run"):
        assert toy.run(expect_locked, tmp_path / "run", os.getpid()) == 0
    with lock_run(tmp_path / "run"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path):
    assert toy.run(hold_and_die, tmp_path, 20) == -signal.SIGKILL
    with lock_run(tmp_path):
        pass


def as_on_windows(monkeypatch):
    def locking(descriptor, mode, count):
        assert os.lseek(descriptor, 0, os.SEEK_CUR) > 1000, "the text would be locked"
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count)

    fake = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)


def expect_locked_on_windows(folder, pid):
    with pytest.MonkeyPatch.context() as monkeypatch:
        as_on_windows(monkeypatch)
        expect_locked(folder, pid)


def test_without_fcntl(tmp_path, monkeypatch):
    as_on_windows(monkeypatch)
    with lock_run(tmp_path):
        assert toy.run(expect_locked_on_windows, tmp_path, os.getpid()) == 0


def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.warns(UserWarning, match="cannot be locked .*No locks available"):
        with lock_run(tmp_path):
            pass
