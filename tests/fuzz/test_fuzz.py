"""Every reader refuses damaged input in one line that names it: no traceback, no crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS, in_a_folder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_valid(name: str) -> None:
    target = TARGETS[name]()
    for seed in target.seeds:
        in_a_folder(target, seed)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--cases=2000", f"--keep={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-3000:]}"


def test_mutations_repeat() -> None:
    from random import Random

    assert mutated([b"abc"], [b"x"], Random(1)) == mutated([b"abc"], [b"x"], Random(1))
