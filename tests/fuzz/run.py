"""Feeds changed inputs to one reader, in a process of its own: a crash ends it, and is seen.

python -m tests.fuzz.run TARGET --cases 2000 --seconds 60 --seed 0 --keep FOLDER
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import REFUSALS, TARGETS

MOST_GROWTH = 1_000_000  # kB that reading small inputs may add to the process


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--cases", type=int, default=sys.maxsize)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args(arguments)
    options.keep.mkdir(parents=True, exist_ok=True)
    current = options.keep / f"{options.target}-current"  # what a crash leaves
    target, random = TARGETS[options.target](), Random(options.seed)
    warnings.simplefilter("ignore")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + options.seconds
    cases = refused = findings = 0
    with tempfile.TemporaryDirectory() as folder:
        while cases < options.cases and time.monotonic() < end:
            data = mutated(target.seeds, target.tokens, random)
            current.write_bytes(data)
            try:
                target.read(data, Path(folder))
            except REFUSALS:
                refused += 1
            except Exception:
                findings += 1
                (options.keep / f"{options.target}-{findings}").write_bytes(data)
                traceback.print_exc()
            cases += 1
    current.unlink(missing_ok=True)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"{options.target}: {cases} inputs, {refused} refused, {findings} findings, "
        f"{growth / 1000:.0f} MB more memory"
    )
    return int(findings > 0 or growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
