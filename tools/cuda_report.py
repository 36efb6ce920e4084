"""Registers, spills and shared memory of every CUDA kernel, as ptxas reports them.

    python tools/cuda_report.py [--arch 80] [--arch 90]

Compiles ``csrc/*/*_cuda.cu`` with the flags of setup.py; needs nvcc, no GPU. Exit status 1 if a
kernel spills registers.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
THREADS = 256  # per block: kThreads in csrc/common/cuda_launch.cuh
SM_THREADS, SM_REGISTERS = 2048, 65536


@dataclass
class Kernel:
    """Resources of one kernel on one architecture."""

    name: str
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int

    @property
    def threads(self) -> int:
        """Threads that the registers let a multiprocessor hold."""
        allocated = -(-self.registers // 8) * 8 * THREADS
        return min(SM_THREADS, SM_REGISTERS // allocated * THREADS)


def nvcc() -> str | None:
    """Path of the compiler: from CUDA_HOME if it is set, else from PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which(f"{home}/bin/nvcc") if home else shutil.which("nvcc")


def compile_report(source: Path, archs: Sequence[str]) -> list[Kernel]:
    """Compiles one file and reads the report of ptxas on its kernels."""
    compiler = nvcc()
    assert compiler is not None
    with tempfile.TemporaryDirectory() as folder:
        command = [
            compiler, "-cubin", "-O3", "-std=c++20", "-fmad=false", "--expt-relaxed-constexpr",
            "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-Xptxas", "-v",
            f"-I{sysconfig.get_path('include')}",
            f"-I{Path(torch.__file__).parent / 'include'}",
        ]  # fmt: skip
        kernels = []
        for arch in archs:
            output = Path(folder) / f"{arch}.cubin"
            result = subprocess.run(
                [*command, f"-arch=sm_{arch}", str(source), "-o", str(output)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if result.returncode != 0:
                raise RuntimeError(f"{source.name} does not compile:\n{result.stderr}")
            kernels += parse(result.stderr, arch)
    return kernels


def parse(log: str, arch: str) -> list[Kernel]:
    """The kernels that ptxas' verbose output names."""
    kernels = []
    for entry in log.split("Compiling entry function '")[1:]:
        spills = re.findall(r"(\d+) bytes spill", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        assert registers is not None
        kernels.append(
            Kernel(
                demangle(entry.split("'")[0]), arch, int(registers[1]), sum(map(int, spills)),
                int(shared[1]) if shared else 0,
            )
        )  # fmt: skip
    return kernels


def demangle(symbol: str) -> str:
    """``roi_align_forward<float, 4>`` from the mangled name, if c++filt is there."""
    if tool := shutil.which("c++filt"):
        symbol = subprocess.run([tool, symbol], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\w+(<[^()]*>)?)\(", symbol.replace("(anonymous namespace)::", ""))
    return (found[1] if found else symbol.strip()).replace("c10::", "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", help="default: 80 and 90")
    options = parser.parse_args(arguments)
    if nvcc() is None:
        print("nvcc not found: put it on the path or set CUDA_HOME", file=sys.stderr)
        return 2
    sources = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(
            lambda source: compile_report(source, options.arch or ["80", "90"]), sources
        )
        kernels = [kernel for report in reports for kernel in report]
    print(f"{'kernel':54} sm  registers  spilled  shared  threads/SM")
    for kernel in sorted(kernels, key=lambda kernel: (kernel.name, kernel.arch)):
        print(
            f"{kernel.name:54} {kernel.arch} {kernel.registers:10} {kernel.spill_bytes:8} "
            f"{kernel.shared_bytes:7} {kernel.threads:11}"
        )
    spilled = [kernel.name for kernel in kernels if kernel.spill_bytes]
    print(
        f"{len(kernels)} kernels, {len(spilled)} spill"
        + (f": {', '.join(spilled)}" if spilled else "")
    )
    return bool(spilled)


if __name__ == "__main__":
    sys.exit(main())
