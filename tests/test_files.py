"""Files appear whole or not at all, and nothing else is replaced."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_scratch import files
from maskrcnn_scratch.files import check_writable, folder_beside, write_atomically, write_json
from maskrcnn_scratch.plain_values import printable
from tests.permissions import permissions_apply

WRITER = """
import sys
from pathlib import Path
from maskrcnn_scratch.files import write_atomically
for _ in range(30):
    def write(file):
        for _ in range(50):
            file.write(sys.argv[2].encode() * 10_000)
            file.flush()
    write_atomically(Path(sys.argv[1]), write)
"""


def test_two_processes_write_one_path(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, lambda file: file.write(b"0" * 500_000))
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, letter]) for letter in "abc"]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        content = path.read_bytes()
        assert len(content) == 500_000 and len(set(content)) == 1, "a mixed or short file"
        reads += 1
    assert [writer.returncode for writer in writers] == [0, 0, 0] and reads > 20
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_writer_inside_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    def write(file):  # type: ignore[no-untyped-def]
        file.write(b"1")
        write_json(path, 2)
        assert json.loads(path.read_text()) == 2

    write_atomically(path, write)
    assert path.read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_writer_left_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "a.json.part").write_text("half of something long")
    write_json(tmp_path / "a.json", 1)
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_a_link_beside_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "a.json.part").symlink_to("precious")
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for link, target in (("existing", "there/a.json"), ("dangling", "there/b.json")):
        (tmp_path / link).symlink_to(target)
    (tmp_path / "there" / "a.json").write_text("old")
    for link in ("existing", "dangling"):
        write_json(tmp_path / link, 1)
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / link).read_text() == "1\n"
    assert sorted(os.listdir(tmp_path / "there")) == ["a.json", "b.json"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_json(pipe, {"a": 1})
    reader.join()
    assert read == ['{"a": 1}\n']
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_devices_are_written_to(tmp_path: Path) -> None:
    write_json(Path("/dev/null"), 1)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    (tmp_path / "null").symlink_to("/dev/null")
    write_json(tmp_path / "null", 1)
    assert (tmp_path / "null").is_symlink()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_standard_output_that_is_a_file(tmp_path: Path) -> None:
    code = (
        "from maskrcnn_scratch.files import write_json; print('first', flush=True);"
        "write_json('/dev/stdout', 1); print('last', flush=True)"
    )
    with open(tmp_path / "out", "ab") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "first\n1\nlast\n"


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_as_open_gives_them(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == mode
    (tmp_path / "a.json").chmod(0o640)
    write_json(tmp_path / "a.json", 2)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError, TypeError])
def test_failure_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def fail(file):  # type: ignore[no-untyped-def]
        file.write(b"half")
        raise error("no")

    with pytest.raises(error):
        write_atomically(tmp_path / "a.json", fail)
    assert os.listdir(tmp_path) == []


def test_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 250 + ".json")
    write_json(path, 1)
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match=r"a\.json: could not be written \(Is a directory\)$"):
        write_json(tmp_path / "a.json", 1)


def test_file_systems_that_cannot_synchronise_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", no_folders)
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").read_text() == "1\n"


class Windows:
    """The module os as far as Windows differs here: folders cannot be opened."""

    name = "nt"

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, *arguments: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return os.open(path, *arguments)


def test_as_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "os", Windows())
    monkeypatch.setattr(files, "fcntl", None)
    file = tmp_path / "runs" / "scores.json"
    for value in (1, 2):
        write_json(file, value)
    assert json.loads(file.read_text()) == 2
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_that_a_killed_process_left_is_used_again(tmp_path: Path) -> None:
    left = tmp_path / ".a.onnx.part"
    (left / "folder").mkdir(parents=True)
    (left / "folder/half").write_text("half of a model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("kept")
    (left / "link").symlink_to(tmp_path / "other")
    with folder_beside(tmp_path / "a.onnx") as folder:
        assert folder == left and not list(folder.iterdir())
        (folder / "model").write_text("")
    assert os.listdir(tmp_path) == ["other"]
    assert (tmp_path / "other/file").read_text() == "kept"


def test_two_folders_beside_one_path(tmp_path: Path) -> None:
    with folder_beside(tmp_path / "a") as first:
        (first / "file").write_text("first")
        with folder_beside(tmp_path / "a") as second:
            assert second.parent == tmp_path and not list(second.iterdir())
        assert (first / "file").read_text() == "first"
    assert os.listdir(tmp_path) == []


def test_a_link_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("kept")
    (tmp_path / ".a.part").symlink_to("other")
    with folder_beside(tmp_path / "a") as folder:
        assert folder.is_dir() and not folder.is_symlink()
    assert sorted(os.listdir(tmp_path)) == [".a.part", "other"]
    assert (tmp_path / "other/file").read_text() == "kept"


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "new/a.json")
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "new/a.json").write_text("kept")
    check_writable(tmp_path / "new/a.json")
    check_writable(Path(os.devnull))
    assert (tmp_path / "new/a.json").read_text() == "kept"
    (tmp_path / "new").chmod(0o555)
    for path in (tmp_path, tmp_path / "new/a.json/b", tmp_path / "new/b.json"):
        with (
            permissions_apply(tmp_path),
            pytest.raises(OSError, match=f"{path}: could not be written "),
        ):
            check_writable(path)


def test_a_path_for_a_message_prints_whole() -> None:
    assert printable("/data/images/é.png") == "/data/images/é.png"
    assert printable("/data/a\nb\x1b[2J_photo.png") == "/data/a\\nb\\x1b[2J_photo.png"
