"""The files that a command reads and writes: images, folders of images, glob patterns."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob, has_magic
from itertools import count
from pathlib import Path

from maskrcnn_scratch.cli import UsageError
from maskrcnn_scratch.data.walk import files_below

# Suffixes of files in folders. A file given by name may have any suffix.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def find_images(arguments: Sequence[str]) -> list[Path]:
    """The image files of the arguments; see ``find_files``."""
    return list(find_files(arguments, IMAGE_SUFFIXES))


def find_files(
    arguments: Sequence[str], suffixes: Sequence[str], skip: Path | None = None
) -> dict[Path, str]:
    """The files of the arguments, each once, in order, and their names.

    Folders are searched recursively, without hidden files and folders. What a folder or glob gives
    is sorted. The name of a file is its path below the folder, or below the fixed part of the glob.

    Args:
        arguments: files, folders and glob patterns.
        suffixes: of the files to take from folders and globs.
        skip: output folder; it and those numbered after it (``numbered_folder``) are not searched.

    Raises:
        UsageError: there is no argument, or nothing was found for one.
        OSError: a folder cannot be read.
    """
    if not arguments:
        raise UsageError("give at least one image, folder of images or glob pattern")
    files: dict[Path, str] = {}
    taken: set[Path] = set()
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            base, found = path, list(files_below(path, hidden=False))
        elif path.is_file() or not has_magic(argument):
            if not path.is_file():
                raise UsageError(f"{argument}: no such image file")
            _add(files, taken, path, path.name)
            continue
        else:
            base, found = _fixed_part(path), sorted(map(Path, glob(argument, recursive=True)))
        found = [
            file
            for file in found
            if file.suffix.lower() in suffixes and file.is_file() and not _is_below(file, skip)
        ]
        if not found:
            kind = "no images in the folder" if path.is_dir() else "no such image file"
            raise UsageError(f"{argument}: {kind}")
        for file in found:
            _add(files, taken, file, file.relative_to(base).as_posix())
    return files


def _add(files: dict[Path, str], taken: set[Path], file: Path, name: str) -> None:
    if file.resolve() not in taken:
        taken.add(file.resolve())
        files[file] = name


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob pattern before its first part with a wildcard."""
    parts = pattern.parts
    return Path(*parts[: next(i for i, part in enumerate(parts) if has_magic(part))])


def _is_below(file: Path, skip: Path | None) -> bool:
    if skip is None:
        return False
    root = skip.absolute()
    for folder in file.absolute().parents:
        name, _, number = folder.name.rpartition("-")
        is_numbered = folder.parent == root.parent and name == root.name and number.isdecimal()
        if folder == root or is_numbered:
            return True
    return False


def numbered_folder(folder: Path) -> Path:
    """Makes and returns ``folder`` or, if it exists, the first of folder-2, folder-3, ..."""
    for number in count(1):
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError


def check_outputs(inputs: Sequence[Path], outputs: Sequence[Path], overwrite: bool) -> None:
    """Raises a UsageError if an output is an input, or exists and must not be replaced."""
    sources = {file.resolve() for file in inputs}
    for path in outputs:
        if path.resolve() in sources:
            raise UsageError(f"{path} is one of the input images: choose another --out")
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists: choose another --out, or use --overwrite")
