"""A kill at a random point of a command loses nothing; ``make soak`` makes many more."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.kills import Experiment


@pytest.mark.slow
@pytest.mark.parametrize("job, kills", [("train", 2), ("evaluate", 1), ("predict", 1),
                                        ("download", 1)])  # fmt: skip
def test_killed_commands(job: str, kills: int, tmp_path: Path) -> None:
    experiment, random = Experiment(job, tmp_path), Random(job)
    for _ in range(kills):
        experiment.kill(random)
