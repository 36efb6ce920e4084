"""Compiles the CUDA kernels for the CPU (see ``include/cuda_runtime.h``)."""

from __future__ import annotations

import fcntl
import hashlib
import os
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
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


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
        planted: text of a kernel and what replaces it, to see that the bug is found.
    """
    kernels = sorted(ROOT.glob(f"csrc/{only}/*_cuda.cu"))
    sources = [*kernels, ROOT / "csrc/schema.cpp", HERE / "no_device.cpp"]
    texts = {source: source.read_text() for source in sources}
    if planted is not None:
        own = [*kernels, *ROOT.glob(f"csrc/{only}/*.cuh")]
        (file,) = [file for file in own if planted[0] in file.read_text()]
        texts[file] = file.read_text().replace(*planted, 1)
    headers = sorted([*ROOT.glob("csrc/**/*.*h"), *HERE.glob("include/*.h")])
    key = repr([threads, sanitize, FLAGS, torch.__version__, sorted(texts.values())])
    digest = hashlib.sha1((key + "".join(h.read_text() for h in headers)).encode()).hexdigest()[:12]
    namespace = f"maskrcnn_emulated_{digest}"
    library = ROOT / "build" / "emulated" / namespace / "kernels.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with (library.parent / "lock").open("w") as lock:  # test processes compile each library once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(library, namespace, texts, threads, SANITIZE if sanitize else [])
    torch.ops.load_library(str(library))
    return getattr(torch.ops, namespace)


def _compile(
    library: Path, namespace: str, texts: dict[Path, str], threads: int, sanitize: Sequence[str]
) -> None:
    folder = library.parent
    flags = [
        *FLAGS,
        *sanitize,
        f"-DEMULATED_NAMESPACE={namespace}",
        f"-DMASKRCNN_CUDA_THREADS={threads}",
        f"-I{HERE / 'include'}",
        f"-I{sysconfig.get_path('include')}",
        *(f"-isystem{path}" for path in cpp_extension.include_paths()),
        "-include",
        "registration.h",
    ]
    compiler = os.environ.get("CXX", "c++").split()

    # Files are compiled as copies, because one with a planted bug differs from its source. Such a
    # header lies beside the copies, where it is found before the one in csrc/.
    sources = [file for file in texts if file.suffix != ".cuh"]
    for file in texts.keys() - set(sources):
        (folder / file.name).write_text(texts[file])

    def compile_one(source: Path) -> Path:
        copy = folder / f"{source.name}.cpp"
        copy.write_text(texts[source])
        output = copy.with_suffix(".o")
        run([*compiler, *flags, f"-I{source.parent}", "-c", str(copy), "-o", str(output)])
        return output

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(output) for output in pool.map(compile_one, sources)]
    torch_libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    partial = library.with_suffix(f".{os.getpid()}")
    run(
        [*compiler, "-shared", "-Wl,-Bsymbolic", *sanitize, *objects, *torch_libraries]
        + ["-ltorch", "-ltorch_cpu", "-lc10", "-o", str(partial)]
    )
    partial.replace(library)


def run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr[-4000:]}"
