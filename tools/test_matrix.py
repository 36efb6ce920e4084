"""The tests of the operators under other instruction sets, threads, compilers and versions.

    python tools/test_matrix.py [--quick] [--python OTHER/bin/python ...] [--compiler g++ clang++]

Runs the fast part of the suite (operators, run lengths, resizing, the operators' part of the parity
check; some ten seconds of CPU time) once per row, and prints a table in Markdown. What this machine
cannot run is a row too, with the reason. The exit status is 1 if a row failed.

--quick: three rows that differ most. --python: other environments with PyTorch and the test
dependencies, which load the same kernels; `make setup VENV=.venv-oldest TORCH="torch==2.11.*
torchvision==0.26.*"` makes one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPS = ("boxes", "conv3x3", "conv3x3_weight_gradient", "max_iou", "nms", "paste_masks")
OPS += ("paste_masks_packed", "rle", "rle_reference", "roi_align", "top_k")
TESTS = (
    *(f"tests/ops/test_{op}.py" for op in OPS),
    "tests/parity/test_parity.py::test_ops",
    "tests/export/test_translations.py::test_resize_rounds_as_pytorch",
)
# Registration, compilation and memory do not depend on what differs here.
CHOSEN = "not opcheck and not exports and not compile and not little_memory and not memory_format"
LEVELS = ("baseline", "avx2", "avx512")  # of the kernels; PyTorch calls the first one "default"
UNKNOWN = "?"  # version
WANTED = {
    "Python 3.10": r"^3\.10\.",
    "Python 3.13 or newer": r"^3\.1[3-9]\.",
    "torch 2.11": r", 2\.11\.",
}
QUICK = {("baseline", "baseline", 1), ("avx2", "avx512", 2), ("avx512", "avx2", 1)}


@dataclass(frozen=True)
class Row:
    """One run of the tests. Empty text: as the environment has it."""

    python: str = sys.executable
    torch_isa: str = ""  # ATEN_CPU_CAPABILITY
    our_isa: str = ""  # MASKRCNN_ISA
    threads: int = 1
    compiler: str = ""
    package: Path = ROOT  # folder that maskrcnn_scratch is imported from


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows, for continuous integration")
    parser.add_argument(
        "--python", nargs="*", default=[], help="interpreters of other environments"
    )
    parser.add_argument("--compiler", nargs="*", default=["g++", "clang++"])
    options = parser.parse_args(arguments)

    print(f"{platform.system()} {platform.machine()}, {_processor()}\n")
    print("| Python, torch | compiler | PyTorch's kernels | ours | threads | result |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    failures = []
    for row, reason in rows(options):
        result, failed = (f"not run: {reason}", []) if reason else run(row)
        cells = [versions(row.python), row.compiler or "as built", row.torch_isa or "best"]
        cells += [row.our_isa or "best", str(row.threads), result]
        print(f"| {' | '.join(cells)} |", flush=True)
        failures += failed
    known = [versions(python) for python in (sys.executable, *options.python)]
    for what, pattern in WANTED.items():
        if not options.quick and not any(re.search(pattern, versions) for versions in known):
            print(f"| {what} | | | | | not run: name an environment with --python |")
    for failure in failures:
        print(failure)
    return bool(failures)


def rows(options: argparse.Namespace) -> Iterator[tuple[Row, str]]:
    """Each row, and why it cannot run here, which is empty if it can."""
    best = best_level()
    for torch_isa, our_isa, threads in itertools.product(LEVELS, LEVELS, (1, 2)):
        missing = [isa for isa in (torch_isa, our_isa) if LEVELS.index(isa) > LEVELS.index(best)]
        if not options.quick or (torch_isa, our_isa, threads) in QUICK:
            name = "default" if torch_isa == "baseline" else torch_isa
            reason = f"this CPU has no {missing[0]}" if missing else ""
            yield Row(torch_isa=name, our_isa=our_isa, threads=threads), reason
    for python in options.python:
        known = versions(python)
        yield Row(python), f"{python} has no torch" if known == UNKNOWN else ""
    if not options.quick:
        for compiler in options.compiler:
            yield compiled(compiler)


def best_level() -> str:
    """The best instruction set of this CPU, as PyTorch names it."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    found = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    return next((isa for isa in reversed(LEVELS) if isa in found.lower()), LEVELS[0])


def compiled(compiler: str) -> tuple[Row, str]:
    """A row with CPU kernels made by that compiler, in ``build/matrix``."""
    if not shutil.which(compiler):
        return Row(compiler=compiler), f"{compiler} is not installed"
    version = subprocess.check_output([compiler, "-dumpversion"], text=True).strip()
    base = ROOT / "build" / "matrix" / compiler
    row = Row(compiler=f"{compiler} {version}", package=base / "lib")
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(base)]
    result = subprocess.run(
        [*command, "--build-lib", str(row.package)],
        cwd=ROOT,
        env={**os.environ, "CXX": compiler, "MASKRCNN_BUILD": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{compiler} cannot compile the kernels:\n{result.stderr[-4000:]}")
    return row, ""


def run(row: Row) -> tuple[str, list[str]]:
    """pytest's counts, and a line per failure."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, dict.fromkeys([row.package, ROOT]))),
        "OMP_NUM_THREADS": str(row.threads),
        "ATEN_CPU_CAPABILITY": row.torch_isa,
        "MASKRCNN_ISA": row.our_isa,
    }
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "--fast", "-k", CHOSEN]
    settings += ["-q", "-p", "no:cacheprovider", "-o", f"pythonpath={row.package}"]
    result = subprocess.run(
        [row.python, "-m", "pytest", *settings, *(str(ROOT / test) for test in TESTS)],
        cwd=row.package,
        env={name: value for name, value in environment.items() if value},
        capture_output=True,
        text=True,
        check=False,
    )
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", result.stdout.splitlines()[-1])
    failed = re.findall(r"^(?:FAILED|ERROR) .*", result.stdout, re.MULTILINE)
    if result.returncode and not failed:
        failed = [f"{row}: {(result.stdout + result.stderr)[-2000:]}"]
    return ", ".join(counts) or "failed", failed


def versions(python: str) -> str:
    """Of Python and torch."""
    code = "import platform, torch; print(platform.python_version(), torch.__version__)"
    if not shutil.which(python):
        return UNKNOWN
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return ", ".join(result.stdout.split()) or UNKNOWN


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
