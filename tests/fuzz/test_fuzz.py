"""Every reader refuses damaged input in one line that names it: no traceback, no crash."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS, in_a_folder
from tests.training import toy


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_valid(name: str) -> None:
    target = TARGETS[name]()
    for seed in target.seeds:
        in_a_folder(target, seed)


def fuzz(name: str, folder: Path) -> None:
    sys.stdout = sys.stderr = (folder / "log").open("w")
    sys.exit(run.main([name, "--cases=2000", f"--keep={folder}"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused(name: str, tmp_path: Path) -> None:
    process = toy.start(fuzz, name, tmp_path)
    process.join(300)
    if process.is_alive():
        process.kill()
        process.join()
    log = (tmp_path / "log").read_text()
    assert process.exitcode == 0, f"exit status {process.exitcode}: {log[-3000:]}"
    assert f"{name}: 2000 inputs, " in log


def test_mutations_repeat() -> None:
    from random import Random

    assert mutated([b"abc"], [b"x"], Random(1)) == mutated([b"abc"], [b"x"], Random(1))
