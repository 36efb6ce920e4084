"""Compiles the CUDA kernels for the CPU (see ``include/cuda_runtime.h``)."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "emulated"
COMPILER = os.environ.get("CXX", "c++").split()
# As in setup.py, apart from optimization and the kernels' language.
FLAGS = [
    "-std=c++20",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-w",
]
# The compiler calls a function for each access of a kernel (memory.cpp); shared memory is
# thread-local, so that it lies in one range.
RECORD = ["-O1", "-fsanitize=thread", "-D__shared__=static thread_local"]
# AddressSanitizer watches the bounds of static arrays, but not of thread-local ones. Less is
# optimized, which halves the time to compile the many checks.
SANITIZE = [
    "-Og",
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=undefined,float-cast-overflow",
    "-D__shared__=static",
]


@functools.cache
def load_emulated(
    threads: int,
    *,
    sanitize: bool = False,
    only: str = "*/*",
    planted: tuple[str, str] | None = None,
) -> Any:
    """The ops as ``torch.ops.<namespace>``, compiled unless that was done before.

    Args:
        threads: number of threads per block.
        sanitize: use AddressSanitizer and UBSan; the process must have preloaded them.
        only: the one op to compile, as ``folder/op``: ``csrc/folder/op_cuda.cu``.
        planted: text of one file of that folder or of ``csrc/common``, and what replaces it, to see
            that the bug is found.
    """
    library = build_emulated(threads, sanitize=sanitize, only=only, planted=planted)
    torch.ops.load_library(str(library))
    return getattr(torch.ops, library.parent.name)


def build_emulated(
    threads: int,
    *,
    sanitize: bool = False,
    only: str = "*/*",
    planted: tuple[str, str] | None = None,
) -> Path:
    """The library of ``load_emulated``, in a folder named after a hash of what it is made of."""
    kernels = sorted(ROOT.glob(f"csrc/{only}_cuda.cu"))
    key = repr([threads, sanitize, planted, only])
    folders = {ROOT / "csrc/common", *(kernel.parent for kernel in kernels)}
    namespace = f"maskrcnn_emulated_{_hash(key, [ROOT / 'csrc/schema.cpp', HERE, *folders])}"
    library = BUILD / namespace / "kernels.so"
    with _locked(library.parent):
        if not library.exists():
            if planted is not None:
                kernels = _plant(kernels, planted, library.parent / "csrc")
            _link(library, kernels, threads, SANITIZE if sanitize else RECORD)
    return library


def _hash(key: str, paths: Sequence[Path]) -> str:
    """Of the files, those in folders included, of the compiler and of torch."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.*"))]
    texts = [file.read_text() for file in sorted(files) if file.suffix != ".pyc"]
    return hashlib.sha1(repr([key, *COMPILER, torch.__version__, texts]).encode()).hexdigest()[:12]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Test processes compile each file once: the others wait here."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _plant(kernels: Sequence[Path], planted: tuple[str, str], copy: Path) -> list[Path]:
    """Copies of the kernels and of the files beside them, of which one holds the planted text."""
    shutil.rmtree(copy, ignore_errors=True)
    for folder in ("common", *{kernel.parent.name for kernel in kernels}):
        shutil.copytree(ROOT / "csrc" / folder, copy / folder)
    (file,) = [file for file in copy.glob("*/*.*") if planted[0] in file.read_text()]
    file.write_text(file.read_text().replace(*planted, 1))
    return [copy / kernel.parent.name / kernel.name for kernel in kernels]


def _link(library: Path, kernels: Sequence[Path], threads: int, how: Sequence[str]) -> None:
    sanitizers = [flag for flag in how if flag.startswith("-f")] if how is SANITIZE else []
    namespace = library.with_name("namespace.cpp")
    name = library.parent.name
    namespace.write_text(f'extern const char emulated_namespace[];\n'
                         f'const char emulated_namespace[] = "{name}";\n')  # fmt: skip
    # No header that is precompiled reads the number of threads.
    kernel_flags = [*how, "-include", str(_precompile(how)), f"-DMASKRCNN_CUDA_THREADS={threads}"]
    host_flags = ["-O1", *sanitizers]
    work = [(kernel, kernel_flags) for kernel in kernels]
    work.append((ROOT / "csrc/schema.cpp", [*host_flags, "-include", "registration.h"]))
    work += [(source, host_flags) for source in (*sorted(HERE.glob("*.cpp")), namespace)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(output) for output in pool.map(_compile, *zip(*work, strict=True))]
    torch_libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    partial = library.with_suffix(f".{os.getpid()}")
    run(
        [*COMPILER, "-shared", "-Wl,-Bsymbolic", *sanitizers, *objects, *torch_libraries]
        + ["-ltorch", "-ltorch_cpu", "-lc10", "-o", str(partial)]
    )
    partial.replace(library)


def _compile(source: Path, flags: Sequence[str]) -> Path:
    """The object of one file; files that were compiled before, for another library too, are kept.

    Returns:
        a path that is named after a hash of the flags and of the text, headers included.
    """
    read = [source, HERE / "include", *HERE.glob("*.h")]
    if source.suffix == ".cu":
        read += [source.parent, source.parent.parent / "common"]
    return _made_once(source, [*_command(flags), "-x", "c++", "-c"], read, "object.o")


def _precompile(flags: Sequence[str]) -> Path:
    """A copy of ``precompiled.h``; beside it lies what the compiler reads in its place."""
    source = HERE / "include" / "precompiled.h"
    command = [*_command(flags), "-x", "c++-header"]
    output = _made_once(source, command, [HERE / "include"], f"{source.name}.gch")
    copy = output.with_suffix("")
    if not copy.exists():
        shutil.copy(source, copy)
    return copy


def _command(flags: Sequence[str]) -> list[str]:
    return [
        *COMPILER,
        *FLAGS,
        *flags,
        f"-I{HERE / 'include'}",
        f"-I{sysconfig.get_path('include')}",
        *(f"-isystem{path}" for path in cpp_extension.include_paths()),
    ]


def _made_once(source: Path, command: Sequence[str], read: Sequence[Path], name: str) -> Path:
    """What the compiler makes of ``source``, in a folder named after a hash of all it reads."""
    folder = BUILD / "objects" / f"{source.stem}_{_hash(repr(command), read)}"
    output = folder / name
    with _locked(folder):
        if not output.exists():
            partial = output.with_suffix(f".{os.getpid()}")
            run([*command, str(source), "-o", str(partial)])
            partial.replace(output)
    return output


def run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr[-4000:]}"
