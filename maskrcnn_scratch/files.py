"""Files that are written whole or not at all, also if the process is killed or the disk is full."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_json(path: str | os.PathLike[str], content: object, indent: int | None = None) -> None:
    """Writes ``content`` as JSON, and makes the folder if it is missing.

    Raises:
        OSError: as ``write_atomically``.
    """
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes ``text`` as UTF-8, and makes the folder if it is missing.

    Raises:
        OSError: as ``write_atomically``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Lets ``write`` fill a file beside ``path``, which replaces it once it is on the disk.

    The target of a symbolic link is replaced, not the link. If several processes write one path,
    it has what one of them wrote. A new file gets the permissions that ``open`` would give it; a
    file that exists keeps its own. Devices and pipes, and all in ``/dev``, are written to instead.

    Raises:
        OSError: the file cannot be written; the message names it, and a file that was there before
            is still there.
    """
    try:
        if _cannot_be_replaced(path):
            with open(path, "ab") as file:
                write(file)
        else:
            _replace(Path(os.path.realpath(path)), write)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        kept = "; the file that was there is intact" if path.is_file() else ""
        reason = _reason(error)
        raise OSError(f"{path}: could not be written ({reason}){kept}") from error


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file, or nothing where there is no space for it.

    Raises:
        OSError: the line cannot be written; the message names the file.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            left = f"{line}\n".encode()
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise OSError(f"{path}: could not be written ({_reason(error)})") from error


def check_writable(path: Path) -> None:
    """Raises now, before long work, what ``write_text`` and ``write_json`` would raise later.

    The folder of ``path`` is made if it is missing; an existing file is not changed.

    Raises:
        OSError: ``path`` is a folder, or may not be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _cannot_be_replaced(path):
            with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
                pass
    except OSError as error:
        raise OSError(f"{path}: could not be written ({_reason(error)})") from error


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """An empty folder on the file system of ``path``, for files that are made in several steps.

    It is ``.<name>.part``, and is removed at the end. One that a killed process left is used again.
    While another process holds that, and where folders cannot be locked, it has a random name.

    Raises:
        OSError: the folder cannot be made; the message names ``path``.
    """
    folder = path.with_name(f".{path.name[:40]}.part")
    descriptor = _open_folder(folder)
    try:
        if descriptor is None:
            folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{folder.name}."))
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise OSError(f"{path} can't be written: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _open_folder(folder: Path) -> int | None:
    """A descriptor of the folder, locked; made if it is missing. None if that is not possible.

    Nobody else may own it, and it is no link: what it holds will be removed.
    """
    if fcntl is not None:
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor, folder):
                return descriptor
            os.close(descriptor)
    return None


def _reason(error: BaseException) -> str:
    """One line. torch.save hides the operating system's error behind one of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


def _cannot_be_replaced(path: Path) -> bool:
    if path.absolute().parts[:2] == ("/", "dev"):  # /dev/stdout may be a file that others write
        return True
    return path.exists() and not path.is_file()


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    part, descriptor = _open_part(path)
    try:
        with open(descriptor, "wb") as file:
            if path.exists():
                os.chmod(part, stat.S_IMODE(path.stat().st_mode))
            write(file)
            file.flush()
            os.fsync(descriptor)
            if os.name != "nt":  # while the file is locked
                os.replace(part, path)
        if os.name == "nt":  # an open file cannot be renamed there
            os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _open_part(path: Path) -> tuple[Path, int]:
    """An empty file beside ``path`` that no other writer uses, and its descriptor.

    It is ``<name>.part``, locked: one that a killed writer left is used again. While another writer
    holds that, and where files cannot be locked, it has a random name.
    """
    part = path.with_name(f"{path.name}.part")
    if fcntl is not None:
        with suppress(OSError):
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            if _lock(descriptor, part):
                os.truncate(descriptor, 0)
                return part, descriptor
            os.close(descriptor)
    part = path.with_name(f"{path.name[:40]}.{secrets.token_hex(8)}.part")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return part, os.open(part, flags, 0o666)


def _lock(descriptor: int, part: Path) -> bool:
    """Whether the open file is now this writer's, and still has the name ``part``."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The writer before may have given the file its name between the opening and the lock.
        return os.path.samestat(os.fstat(descriptor), os.lstat(part))
    except OSError:  # locked by another, or a file system without locks
        return False


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where folders can be synchronised."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
