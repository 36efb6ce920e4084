"""Downloads from a local server with the failures of real ones."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from maskrcnn_scratch.weights import WeightsError, download
from maskrcnn_scratch.weights.download import download_weights
from tests.permissions import permissions_apply


@dataclass
class Behaviour:
    """What the server does; ``requests`` records the Range header of each request."""

    content: bytes
    status: int = 200
    break_at: list[int] = field(default_factory=list)  # bytes sent before each of the next breaks
    ranges: bool = True
    length: bool | str = True
    redirect: str = ""
    raw: bytes = b""
    delay: float = 0.0  # seconds between pieces
    requests: list[str | None] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    behaviour: Behaviour


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        does = self.server.behaviour
        asked = self.headers.get("Range")
        does.requests.append(asked)
        if does.raw:
            self.wfile.write(does.raw)
            return None
        if does.redirect:
            self.send_response(302)
            self.send_header("Location", does.redirect)
            return self.end_headers()
        if does.status != 200:
            return self.send_error(does.status)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and does.ranges else 0
        if start >= len(does.content):
            return self.send_error(416)
        body = does.content[start:]
        self.send_response(206 if start else 200)
        if does.length:
            stated = does.length if isinstance(does.length, str) else str(len(body))
            self.send_header("Content-Length", stated)
        self.end_headers()
        if does.break_at:
            body = body[: does.break_at.pop(0)]
        for i in range(0, len(body), 1000):
            self.wfile.write(body[i : i + 1000])
            time.sleep(does.delay)
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of torch.hub, and no pauses between tries."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "checkpoints"


@pytest.fixture
def server() -> Iterator[Server]:
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(2000.0)}, buffer)
    with Server(("127.0.0.1", 0), Handler) as http:
        http.behaviour = Behaviour(buffer.getvalue())
        thread = threading.Thread(target=http.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield http
        http.shutdown()


def url_of(server: Server, name: str | None = None) -> str:
    digest = hashlib.sha256(server.behaviour.content).hexdigest()[:8]
    return f"http://127.0.0.1:{server.server_port}/models/{name or f'net-{digest}.pth'}"


def test_a_file_is_downloaded_once(server: Server, cache: Path) -> None:
    file = download_weights(url_of(server), progress=False)
    assert file.parent == cache
    assert file.read_bytes() == server.behaviour.content
    assert download_weights(url_of(server), progress=False) == file
    assert len(server.behaviour.requests) == 1
    assert os.listdir(cache) == [file.name]


def test_a_file_that_torch_hub_downloaded_is_used(server: Server, cache: Path) -> None:
    theirs = torch.hub.load_state_dict_from_url(url_of(server), progress=False, check_hash=True)
    download_weights(url_of(server), progress=False)
    assert len(server.behaviour.requests) == 1
    assert theirs["weight"].shape == (2000,)


def test_progress_bar(server: Server, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    download_weights(url_of(server), progress=True)
    bar = capfd.readouterr().err
    assert "net-" in bar
    assert "100%" in bar


def test_a_slow_transfer_is_not_a_timeout(server: Server, cache: Path) -> None:
    server.behaviour.delay = 0.05  # the whole takes longer than the timeout, no piece does
    file = download_weights(url_of(server), progress=False, timeout=0.3)
    assert file.read_bytes() == server.behaviour.content
    assert len(server.behaviour.requests) == 1


def test_a_server_that_sends_nothing_is_a_timeout(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/net-01234567.pth"
        with pytest.raises(WeightsError, match=r"cannot download.*timed out"):
            download_weights(url, progress=False, timeout=0.1)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connection_is_resumed(server: Server, cache: Path, ranges: bool) -> None:
    server.behaviour.ranges = ranges
    server.behaviour.break_at = [3000]
    file = download_weights(url_of(server), progress=False)
    assert file.read_bytes() == server.behaviour.content
    assert server.behaviour.requests == [None, "bytes=3000-"]


def test_next_call_resumes(server: Server, cache: Path) -> None:
    server.behaviour.break_at = [3000, 0, 0, 0]
    with pytest.raises(WeightsError, match=r"broke at byte 3000 of \d+ \(3000 bytes are kept"):
        download_weights(url_of(server), progress=False)
    assert [path.suffix for path in cache.iterdir()] == [".part"]
    file = download_weights(url_of(server), progress=False)
    assert file.read_bytes() == server.behaviour.content
    assert server.behaviour.requests[-1] == "bytes=3000-"


def test_a_connection_that_breaks_many_times(server: Server, cache: Path) -> None:
    server.behaviour.break_at = [1000] * 7  # more often than there are tries without progress
    file = download_weights(url_of(server), progress=False)
    assert file.read_bytes() == server.behaviour.content


def test_an_incomplete_file_of_unknown_length_is_detected(server: Server, cache: Path) -> None:
    server.behaviour.length = False
    server.behaviour.break_at = [3000]
    with pytest.raises(WeightsError, match="SHA-256"):
        download_weights(url_of(server), progress=False)
    assert not list(cache.iterdir())


def test_a_part_file_that_is_too_long(server: Server, cache: Path) -> None:
    cache.mkdir()
    name = Path(url_of(server)).name
    (cache / f"{name}.part").write_bytes(b"x" * 100_000)
    assert download_weights(url_of(server), progress=False).read_bytes() == server.behaviour.content


def test_wrong_hash(server: Server, cache: Path) -> None:
    url = url_of(server, "net-01234567.pth")
    with pytest.raises(WeightsError, match=r"net-01234567\.pth.*SHA-256.*says 01234567"):
        download_weights(url, progress=False)
    assert not list(cache.iterdir())
    assert download_weights(url, progress=False, check_hash=False).exists()


def test_a_part_file_of_another_file(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / f"{Path(url_of(server)).name}.part").write_bytes(b"x" * 50)
    with pytest.raises(WeightsError, match="SHA-256"):
        download_weights(url_of(server), progress=False)
    assert download_weights(url_of(server), progress=False).exists()


@pytest.mark.parametrize("status, requests", [(404, 1), (403, 1), (503, 3)])
def test_http_errors(server: Server, cache: Path, status: int, requests: int) -> None:
    server.behaviour.status = status
    with pytest.raises(WeightsError, match=rf"cannot download http.*HTTP {status}.*by hand"):
        download_weights(url_of(server), progress=False)
    assert len(server.behaviour.requests) == requests
    assert not list(cache.iterdir())


def test_no_server(cache: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WeightsError, match=r"cannot download.*refused"):
        download_weights(f"http://127.0.0.1:{port}/net-01234567.pth", progress=False)


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(WeightsError, match=r"cannot download.*name resolution.*net-01234567\.pth"):
        download_weights("http://weights.invalid/net-01234567.pth", progress=False)


@pytest.mark.parametrize("length", ["abc", "-5", "1" * 30, "\u0661"])
def test_a_length_that_is_no_length(server: Server, cache: Path, length: str) -> None:
    server.behaviour.length = length.encode().decode("latin1")
    assert download_weights(url_of(server)).read_bytes() == server.behaviour.content


@pytest.mark.parametrize("target", ["http://[::1/x.pth", "file:///etc/passwd", "http://a\n/x.pth"])
def test_redirections_that_lead_nowhere(server: Server, cache: Path, target: str) -> None:
    server.behaviour.redirect = target.replace("\n", "%0a")
    with pytest.raises(WeightsError, match=rf"cannot download {url_of(server)}: ") as raised:
        download_weights(url_of(server), progress=False)
    assert str(raised.value).isprintable()


def test_an_answer_that_is_not_http(server: Server, cache: Path) -> None:
    """What the server sent comes into the message, but not its control characters."""
    server.behaviour.raw = b"\x1b[2J\x00\xff\r\n\r\n"
    with pytest.raises(WeightsError, match=r"cannot download http.*\\x1b\[2J") as raised:
        download_weights(url_of(server), progress=False)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "url", ["http://[::1/x-01234567.pth", "http://127.0.0.1/\u00e9-01234567.pth",
            "http://\u2100.com/x-01234567.pth", "http://127.0.0.1/a b-01234567.pth"]
)  # fmt: skip
def test_malformed_addresses(cache: Path, url: str) -> None:
    with pytest.raises(WeightsError, match=f"cannot download {re.escape(url)}: "):
        download_weights(url, progress=False)


def test_a_name_that_is_too_long(server: Server, cache: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot write .*name too long.*TORCH_HOME"):
        download_weights(url_of(server, "x" * 300), progress=False)


def test_one_download_for_many_threads(server: Server, cache: Path) -> None:
    server.behaviour.delay = 0.01
    files: list[Path] = []

    def fetch() -> None:
        files.append(download_weights(url_of(server), progress=False))

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files) == 4
    assert len(server.behaviour.requests) == 1


def test_read_only_cache(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub").mkdir(mode=0o555)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    with (
        permissions_apply(tmp_path),
        pytest.raises(WeightsError, match=r"cannot write .*/hub/checkpoints/net-.*TORCH_HOME"),
    ):
        download_weights(url_of(server), progress=False)
    assert server.behaviour.requests == []


def test_a_file_where_the_cache_folder_should_be(server: Server, cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(WeightsError, match=r"cannot write .*TORCH_HOME"):
        download_weights(url_of(server), progress=False)
