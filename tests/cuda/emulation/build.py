"""Compiles the CUDA kernels for the CPU (see ``include/cuda_runtime.h``)."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "emulated"
# As in setup.py, apart from optimization and the kernels' language.
FLAGS = [
    "-std=c++20",
    "-O1",
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
RECORD = ["-fsanitize=thread", "-D__shared__=static thread_local"]
# AddressSanitizer watches the bounds of static arrays, but not of thread-local ones.
SANITIZE = [
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=undefined,float-cast-overflow",
    "-D__shared__=static",
]


@functools.cache
def load_emulated(
    threads: int,
    *,
    sanitize: bool = False,
    only: str = "*",
    planted: tuple[str, str] | None = None,
) -> Any:
    """The ops as ``torch.ops.<namespace>``, compiled unless that was done before.

    Args:
        threads: number of threads per block.
        sanitize: use AddressSanitizer and UBSan; the process must have preloaded them.
        only: the folder in ``csrc/`` of the one op to compile.
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
    only: str = "*",
    planted: tuple[str, str] | None = None,
) -> Path:
    """The library of ``load_emulated``, in a folder named after a hash of what it is made of."""
    kernels = sorted(ROOT.glob(f"csrc/{only}/*_cuda.cu"))
    read = [*kernels, ROOT / "csrc/schema.cpp", *HERE.glob("*.cpp"), *HERE.glob("**/*.h")]
    read += [*ROOT.glob("csrc/common/*"), *ROOT.glob(f"csrc/{only}/*.*h"), Path(__file__)]
    key = repr([threads, sanitize, planted, only, torch.__version__, os.environ.get("CXX")])
    texts = "".join(path.read_text() for path in sorted(read))
    digest = hashlib.sha1((key + texts).encode()).hexdigest()[:12]
    library = BUILD / f"maskrcnn_emulated_{digest}" / "kernels.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with (library.parent / "lock").open("w") as lock:  # test processes compile each library once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            if planted is not None:
                kernels = _plant(kernels, planted, library.parent / "csrc")
            _compile(library, kernels, threads, SANITIZE if sanitize else RECORD)
    return library


def _plant(kernels: Sequence[Path], planted: tuple[str, str], copy: Path) -> list[Path]:
    """Copies of the kernels and of the files beside them, of which one holds the planted text."""
    shutil.rmtree(copy, ignore_errors=True)
    for folder in ("common", *{kernel.parent.name for kernel in kernels}):
        shutil.copytree(ROOT / "csrc" / folder, copy / folder)
    (file,) = [file for file in copy.glob("*/*.*") if planted[0] in file.read_text()]
    file.write_text(file.read_text().replace(*planted, 1))
    return [copy / kernel.parent.name / kernel.name for kernel in kernels]


def _compile(library: Path, kernels: Sequence[Path], threads: int, how: Sequence[str]) -> None:
    flags = [
        *FLAGS,
        f"-DEMULATED_NAMESPACE={library.parent.name}",
        f"-DMASKRCNN_CUDA_THREADS={threads}",
        f"-I{HERE / 'include'}",
        f"-I{sysconfig.get_path('include')}",
        *(f"-isystem{path}" for path in cpp_extension.include_paths()),
        "-include",
        "registration.h",
    ]
    compiler = os.environ.get("CXX", "c++").split()
    sanitizers = [flag for flag in how if flag.startswith("-f")] if how is SANITIZE else []

    def compile_one(source: Path) -> Path:
        output = library.parent / f"{source.name}.o"
        is_kernel = source.suffix == ".cu"
        run([*compiler, *flags, *(how if is_kernel else sanitizers)]
            + ["-x", "c++", "-c", str(source), "-o", str(output)])  # fmt: skip
        return output

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = [*kernels, ROOT / "csrc/schema.cpp", *sorted(HERE.glob("*.cpp"))]
        objects = [str(output) for output in pool.map(compile_one, sources)]
    torch_libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    partial = library.with_suffix(f".{os.getpid()}")
    run(
        [*compiler, "-shared", "-Wl,-Bsymbolic", *sanitizers, *objects, *torch_libraries]
        + ["-ltorch", "-ltorch_cpu", "-lc10", "-o", str(partial)]
    )
    partial.replace(library)


def run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr[-4000:]}"
