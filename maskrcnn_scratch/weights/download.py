"""Downloads a published weights file into torch.hub's cache folder, which torchvision uses too.

Data is written to ``<name>.part``. If the connection breaks or the program is interrupted, the next
call resumes from that file. It gets its final name once it is complete and its hash is right.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch

from maskrcnn_scratch.plain_values import shown
from maskrcnn_scratch.weights.errors import WeightsError

__all__ = ["download_weights", "hash_in_name", "sha256_of"]

_CHUNK = 1 << 17  # bytes
_TRIES = 3  # in a row without a new byte; a try that gets some resets the count
_PAUSE = 0.5  # seconds before the second try, twice that before the third

# Errors of the connection; any other OSError is one of the folder that is written to.
_CONNECTION_ERRORS = (URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


def download_weights(
    url: str,
    *,
    progress: bool = True,
    check_hash: bool = True,
    timeout: float = 30.0,
    sha256: str | None = None,
) -> Path:
    """The file's path in torch.hub's cache folder; downloads the file if it is not there yet.

    Args:
        url: http(s) address; its last part names the file.
        progress: whether to show a progress bar on stderr.
        check_hash: whether to compare a download with the SHA-256 digits in its name
            (``x-0123abcd.pth``), as torch.hub does. A file in the cache is not checked again.
        timeout: seconds without data after which the connection counts as broken.
        sha256: the first digits of the file's SHA-256, instead of those in its name. They name a
            folder of the cache, so that files of one name do not mix.

    Raises:
        WeightsError: a malformed address, no connection, an HTTP error, a wrong hash, or a cache
            folder that cannot be written. The next call resumes the download, except after a wrong
            hash.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if sha256 is not None:
        folder /= f"sha256-{sha256}"
    try:
        file = folder / PurePosixPath(urlparse(url).path).name
    except ValueError as error:
        raise WeightsError(f"cannot download {url}: {error}") from error
    part = file.with_name(f"{file.name}.part")
    try:
        if file.exists():
            return file
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if not file.exists():  # another process may have downloaded it meanwhile
                _fetch(url, part, progress=progress, timeout=timeout)
                if check_hash:
                    _verify(part, sha256)
                os.replace(part, file)
    except OSError as error:
        raise WeightsError(
            f"cannot write {file} ({error.strerror or error}): set TORCH_HOME to a folder that is "
            "writable and has enough space, or put the file there by hand"
        ) from error
    return file


def _fetch(url: str, part: Path, *, progress: bool, timeout: float) -> None:
    """Downloads into ``part`` until it is complete."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return _append(url, part, progress=progress, timeout=timeout)
        except HTTPError as error:
            if error.code == 416:  # part is longer than the file on the server
                part.unlink()
            reason = f"HTTP {error.code} {error.reason}"
            permanent = error.code < 500 and error.code not in (408, 416, 429)
        except _CONNECTION_ERRORS as error:
            reason, permanent = str(getattr(error, "reason", error)) or type(error).__name__, False
        except ValueError as error:  # an address that is none, of a redirection too
            reason, permanent = str(error), True
        failures = failures + 1 if _size(part) <= before else 0
        if permanent or failures == _TRIES:
            kept = f" ({_size(part)} bytes are kept, the next call resumes)" if _size(part) else ""
            raise WeightsError(
                f"cannot download {url}: {shown(reason, 200)}{kept}; or download it by hand to "
                f"{part.with_suffix('')}"
            )
        time.sleep(_PAUSE * failures)


def _append(url: str, part: Path, *, progress: bool, timeout: float) -> None:
    """One request for the missing bytes; raises ConnectionError if the answer ends early."""
    have = _size(part)
    headers = {"User-Agent": "maskrcnn_scratch"} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(url, headers=headers), timeout=timeout) as response:
        if response.status != 206:  # the server ignores Range and sends the whole file
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        bar = torch.hub.tqdm(  # type: ignore[attr-defined]
            total=total,
            initial=have,
            disable=not progress,
            desc=part.stem,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
        )
        with bar, part.open("ab") as out:
            out.truncate(have)
            for chunk in _chunks(response):
                out.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) < total:
        raise ConnectionError(f"the connection broke at byte {_size(part)} of {total}")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read1(_CHUNK):
        yield chunk


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def hash_in_name(name: str) -> str | None:
    """The first digits of a file's SHA-256 that its name states (``x-0123abcd.pth``), or None."""
    stated = re.search(r"-([0-9a-f]{8,})\.", name)
    return None if stated is None else stated[1]


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _verify(part: Path, sha256: str | None) -> None:
    """Deletes ``part`` and raises a WeightsError if its hash is not the given one."""
    expected, found = sha256 or hash_in_name(part.name), sha256_of(part)
    if expected is not None and not found.startswith(expected):
        part.unlink()
        raise WeightsError(
            f"{part.stem}: the SHA-256 of the downloaded file begins with {found[:8]}, "
            f"{'its name says' if sha256 is None else 'expected was'} {expected}; the file was "
            "deleted"
        )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Allows one download at a time: all processes of a training run need the same file."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
