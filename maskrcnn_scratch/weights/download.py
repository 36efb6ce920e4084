"""Fetches a published weights file into torch.hub's cache folder, where torchvision looks too.

The bytes gather in ``<name>.part``, which a broken connection or an interrupted program leaves to
be resumed; the file takes its own name only once it is complete and its hash is right.
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

from maskrcnn_scratch.weights.errors import WeightsError

__all__ = ["download_weights"]

_CHUNK = 1 << 17  # bytes
_TRIES = 3  # in a row that bring no byte; one that brings some starts the count again
_PAUSE = 0.5  # seconds before the second try, twice that before the third

# What a connection can fail with, as against the folder we write to.
_CONNECTION_ERRORS = (URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


def download_weights(
    url: str, *, progress: bool = True, check_hash: bool = True, timeout: float = 30.0
) -> Path:
    """The file's path in torch.hub's cache folder, after a download if it is not there yet.

    Args:
        url: http(s) address; its last part names the file.
        progress: draw a bar on stderr.
        check_hash: compare with the SHA-256 digits in the name (``x-0123abcd.pth``), as torch.hub.
        timeout: seconds that the server may stay silent; a slow but live transfer goes on.

    Raises:
        WeightsError: no connection, an HTTP error, a wrong hash, or a cache folder that cannot be
            written. What arrived so far is resumed by the next call, except after a wrong hash.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / PurePosixPath(urlparse(url).path).name
    if file.exists():
        return file
    part = file.with_name(f"{file.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if not file.exists():  # another process may have fetched it while we waited
                _fetch(url, part, progress=progress, timeout=timeout)
                if check_hash:
                    _verify(part)
                os.replace(part, file)
    except OSError as error:
        raise WeightsError(
            f"cannot write {file} ({error.strerror or error}): point TORCH_HOME at a folder that "
            "can be written and has room, or put the file there by hand"
        ) from error
    return file


def _fetch(url: str, part: Path, *, progress: bool, timeout: float) -> None:
    """Appends to ``part`` until it holds the whole file."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return _append(url, part, progress=progress, timeout=timeout)
        except HTTPError as error:
            if error.code == 416:  # more bytes here than there: not a beginning of that file
                part.unlink()
            reason = f"HTTP {error.code} {error.reason}"
            lasting = error.code < 500 and error.code not in (408, 416, 429)
        except _CONNECTION_ERRORS as error:
            reason, lasting = str(getattr(error, "reason", error)) or type(error).__name__, False
        failures = failures + 1 if _size(part) <= before else 0
        if lasting or failures == _TRIES:
            kept = f" ({_size(part)} bytes are kept, the next call resumes)" if _size(part) else ""
            raise WeightsError(
                f"cannot download {url}: {reason}{kept}; or fetch it by hand and put it at "
                f"{part.with_suffix('')}"
            )
        time.sleep(_PAUSE * failures)


def _append(url: str, part: Path, *, progress: bool, timeout: float) -> None:
    """One request for the bytes that ``part`` lacks; raises ConnectionError where it ends early."""
    have = _size(part)
    headers = {"User-Agent": "maskrcnn_scratch"} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(url, headers=headers), timeout=timeout) as response:
        if response.status != 206:  # the server sends the file from its beginning
            have = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
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


def _verify(part: Path) -> None:
    expected = re.search(r"-([0-9a-f]{8,})\.", part.name)
    if expected is None:
        return
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if not digest.hexdigest().startswith(expected[1]):
        part.unlink()
        raise WeightsError(
            f"{part.stem}: the downloaded file's SHA-256 begins {digest.hexdigest()[:8]}, its name "
            f"says {expected[1]}; it was thrown away"
        )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One download at a time: every process of a training run asks for the same file."""
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
