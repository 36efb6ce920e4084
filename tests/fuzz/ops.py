"""Builds ``ops.cpp`` with libFuzzer and sanitizers, and runs it on the inputs of ``ops_seeds.txt``.

python -m tests.fuzz.ops --seconds 60 --keep FOLDER [--merge FOLDER]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "fuzz"
SEEDS = HERE / "ops_seeds.txt"  # one input per line, in hexadecimal digits
COMPILER = os.environ.get("FUZZ_CXX", "clang++")
SANITIZE = "address,undefined,float-cast-overflow"
FLAGS = ["-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
         f"-fsanitize=fuzzer-no-link,{SANITIZE}",
         "-fno-sanitize-recover=undefined,float-cast-overflow"]  # fmt: skip
STABLE = "-DTORCH_TARGET_VERSION=0x020b000000000000"
ASAN = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1024"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--merge", type=Path, help="renew the seeds from a folder of inputs")
    options = parser.parse_args()
    if not shutil.which(COMPILER):
        print(f"ops: skipped, {COMPILER} is not installed")
        return 0
    fuzzer = build()
    options.keep.mkdir(parents=True, exist_ok=True)
    corpus = options.keep / "ops-inputs"
    corpus.mkdir(exist_ok=True)
    if options.merge:
        run(fuzzer, "-merge=1", "-use_counters=0", str(corpus), str(options.merge))
        inputs = sorted(file.read_bytes().hex() for file in corpus.iterdir())
        SEEDS.write_text("".join(f"{data}\n" for data in inputs))
        return 0
    for number, line in enumerate(SEEDS.read_text().split()):
        (corpus / f"seed-{number}").write_bytes(bytes.fromhex(line))
    limits = [f"-max_total_time={options.seconds}", "-timeout=60", "-max_len=512"]
    limits += ["-rss_limit_mb=2500", "-print_final_stats=1", "-verbosity=1"]
    return run(fuzzer, *limits, f"-artifact_prefix={options.keep}/ops-", str(corpus))


def run(fuzzer: Path, *arguments: str) -> int:
    environment = {**os.environ, "ASAN_OPTIONS": ASAN, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(fuzzer), *arguments], env=environment, check=False).returncode


def build() -> Path:
    """Compiles the CPU kernels and the harness, all of them each time: it takes a minute."""
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = [HERE / "ops.cpp", ROOT / "csrc/schema.cpp", *sorted(ROOT.glob("csrc/*/*_cpu.cpp"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    fuzzer = BUILD / "ops"
    paths = [part for path in cpp_extension.library_paths()
             for part in (f"-L{path}", f"-Wl,-rpath,{path}")]  # fmt: skip
    subprocess.run(
        [COMPILER, f"-fsanitize=fuzzer,{SANITIZE}", *map(str, objects), "-o", str(fuzzer)]
        + [*paths, "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"],
        check=True,
    )
    return fuzzer


def compile_one(source: Path) -> Path:
    output = BUILD / f"{source.stem}.o"
    headers = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    stable = [] if source.parent == HERE else [STABLE]
    subprocess.run(
        [COMPILER, *FLAGS, *stable, *(f"-isystem{path}" for path in headers), "-c", str(source)]
        + ["-o", str(output)],
        check=True,
    )
    return output


if __name__ == "__main__":
    sys.exit(main())
