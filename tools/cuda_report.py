"""Registers, spills, shared memory and instructions of every CUDA kernel.

    python tools/cuda_report.py [--arch 80] [--arch 90]

Compiles ``csrc/*/*_cuda.cu`` with the flags of setup.py; needs nvcc, no GPU. Exit status 1 if a
kernel spills registers. "loop" is the number of machine instructions in the longest loop that has
no loop inside: what a thread issues per turn, if it takes no branch around some of them. "per unit"
divides the main loop of a kernel by what a turn of it produces (``UNITS``). Both need cuobjdump (in
the CUDA toolkit, or in the package triton); without it the columns are empty.
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
from typing import Any

import torch

# What a kernel produces, and the instruction of which each makes one for a thread. Its main loop is
# the longest of the innermost loops that have one, without loops inside that have none. Loads and
# stores make as many as they are wide.
LOADS = r"LDG\b"
STORES = r"ST[GS]\b"
VOTE = r"VOTE\b"
DIVISION = r"MUFU\.RCP"
UNITS = {
    r"roi_align_forward_vectors<.*, 2, (true|false)>": ("element", STORES),
    r"roi_align_backward_.*, 4>": ("bin, pixel and channel", LOADS),
    r"nms_compare": ("pair", VOTE),
    r"nms_rank<float>": ("pair", r"FSETP\.GT"),
    r"best_of_gt|match_boxes": ("pair", DIVISION),
    r"paste_packed": ("pixel", VOTE),
    r"paste_all": ("pixel", r"STG\S*\.128"),
}
ROOT = Path(__file__).parents[1]
THREADS = 256  # per block: kThreads in csrc/common/cuda_launch.cuh
SM_THREADS, SM_REGISTERS = 2048, 65536
RESERVED_SHARED = 1024  # bytes of shared memory per block from 8.0 on; kernels without any have 0


@dataclass
class Kernel:
    """Resources of one kernel on one architecture."""

    symbol: str  # its mangled name
    arch: str
    registers: int
    spill_bytes: int  # from a library: at most so many, as its stack frame may hold arrays too
    shared_bytes: int
    loop: int | None = None  # instructions of its longest innermost loop
    per_unit: float | None = None  # instructions of its main loop, per UNITS

    @property
    def unit(self) -> str:
        """What ``per_unit`` counts; empty for a kernel that ``UNITS`` does not name."""
        return unit_of(self.name)[0]

    @property
    def name(self) -> str:
        """Readable, with its types."""
        return demangle(self.symbol)

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
            found = parse(result.stderr, arch)
            count_instructions(found, disassemble(output))
            kernels += found
    return kernels


def library_report(library: Path, arch: str) -> dict[str, list[Kernel]]:
    """The kernels in a library that setup.py built, by the name of their source; needs cuobjdump.

    Empty if the library was built for other architectures. It does not tell spilled registers from
    arrays in a stack frame: ``spill_bytes`` is the size of both.
    """
    tool = cuobjdump()
    assert tool is not None
    command = [tool, "--dump-resource-usage", "-arch", f"sm_{arch}", str(library)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    kernels = {}
    for part in listed.split("Fatbin elf code:")[1:]:
        source = re.search(r"identifier = (.+)", part)
        assert source is not None
        kernels[Path(source[1]).name] = [
            Kernel(symbol, arch, int(registers), int(stack) + int(local), own_shared(int(shared)))
            for symbol, registers, stack, shared, local in re.findall(usage, part)
        ]
    count_instructions([k for found in kernels.values() for k in found], disassemble(library, arch))
    return kernels


def own_shared(listed: int) -> int:
    """Shared memory of a kernel: the listed size has what the driver reserves per block too."""
    return max(0, listed - RESERVED_SHARED)


def count_instructions(kernels: Sequence[Kernel], functions: dict[str, str]) -> None:
    """Sets ``loop`` and ``per_unit`` from the machine code, as ``disassemble`` gives it."""
    for kernel in kernels:
        if sass := functions.get(kernel.symbol):
            kernel.loop = longest_innermost_loop(sass)
            kernel.per_unit = instructions_per_unit(sass, kernel.name)


def cuobjdump() -> str | None:
    """The disassembler: beside nvcc, on PATH or in triton."""
    triton = Path(torch.__file__).parents[1] / "triton/backends/nvidia/bin/cuobjdump"
    beside = Path(nvcc() or "").resolve().with_name("cuobjdump")
    for tool in (str(beside), "cuobjdump", str(triton)):
        if found := shutil.which(tool):
            return found
    return None


def disassemble(binary: Path, arch: str | None = None) -> dict[str, str]:
    """The machine code of each kernel by its mangled name; empty without cuobjdump.

    Args:
        binary: compiled by nvcc.
        arch: the one to read, of a library with several.
    """
    tool = cuobjdump()
    if tool is None:
        return {}
    command = [tool, "-sass", *(["-arch", f"sm_{arch}"] if arch else []), str(binary)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {function.split()[0]: function for function in sass.split("Function : ")[1:]}


def parse_loops(sass: str) -> list[tuple[int, int, list[str]]]:
    """The loops, each a branch backwards: first and last address, and instructions.

    Those of loops inside it do not belong to a loop.
    """
    code = [
        (int(address, 16), text)
        for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/ +(.+?);", sass)
    ]
    loops = set()
    for address, text in code:
        target = re.search(r"\bBRA\S* (?:\S+, )?`?\(?(?:\.L_\S+|0x([0-9a-f]+))", text)
        if target and target[1] and int(target[1], 16) < address:  # one to itself ends the code
            loops.add((int(target[1], 16), address))

    def own(loop: tuple[int, int]) -> list[str]:
        inside = [other for other in loops if is_inside(other, loop)]
        return [
            text
            for address, text in code
            if loop[0] <= address <= loop[1] and not any(b <= address <= e for b, e in inside)
        ]

    return [(*loop, own(loop)) for loop in sorted(loops)]


def is_inside(inner: Sequence[Any], outer: Sequence[Any]) -> bool:
    """Whether a loop lies in another; both begin with their first and last address."""
    return outer[0] <= inner[0] and inner[1] <= outer[1] and inner[:2] != outer[:2]


def innermost(loops: Sequence[tuple[int, int, list[str]]]) -> list[list[str]]:
    """The instructions of those loops that have none of the others inside."""
    return [loop[2] for loop in loops if not any(is_inside(other, loop) for other in loops)]


def longest_innermost_loop(sass: str) -> int:
    """Instructions of the longest loop without another inside, 0 without a loop."""
    return max(map(len, innermost(parse_loops(sass))), default=0)


def unit_of(kernel: str) -> tuple[str, str]:
    """The entry of ``UNITS`` for the readable name of a kernel; two empty strings without one."""
    found = [entry for pattern, entry in UNITS.items() if re.match(pattern, kernel)]
    return found[0] if found else ("", "")


def instructions_per_unit(sass: str, kernel: str) -> float | None:
    """Instructions of the main loop divided by what a turn of it produces; see ``UNITS``."""
    unit, marker = unit_of(kernel)
    if not unit:
        return None
    element = {"double": 8, "float": 4}.get(kernel.partition("<")[2].split(",")[0], 2)  # bytes

    def produced(text: str) -> float:
        found = re.search(rf"^(?:@\S+ +)?({marker}\S*)", text)
        if found is None:
            return 0
        if not found[1].startswith(("LD", "ST")):
            return 1
        width = re.search(r"\.(U8|U16|64|128)\b", found[1])
        return {"U8": 1, "U16": 2, "64": 8, "128": 16}[width[1]] / element if width else 4 / element

    loops = [loop for loop in parse_loops(sass) if any(map(produced, loop[2]))]
    main = max(innermost(loops), key=len, default=[])
    return len(main) / sum(map(produced, main)) if main else None


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
                entry.split("'")[0], arch, int(registers[1]), sum(map(int, spills)),
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
    print(f"{'kernel':54} sm  registers  spilled  shared  threads/SM  loop  per unit")
    for kernel in sorted(kernels, key=lambda kernel: (kernel.name, kernel.arch)):
        print(
            f"{kernel.name:54} {kernel.arch} {kernel.registers:10} {kernel.spill_bytes:8} "
            f"{kernel.shared_bytes:7} {kernel.threads:11} "
            f"{'' if kernel.loop is None else kernel.loop:5} "
            + ("" if kernel.per_unit is None else f"{kernel.per_unit:9.1f} {kernel.unit}")
        )
    spilled = [kernel.name for kernel in kernels if kernel.spill_bytes]
    print(
        f"{len(kernels)} kernels, {len(spilled)} spill"
        + (f": {', '.join(spilled)}" if spilled else "")
    )
    return bool(spilled)


if __name__ == "__main__":
    sys.exit(main())
