"""Examples of the README and the how-to pages run as they stand; commands have these options."""

from __future__ import annotations

import functools
import os
import re
import runpy
import shlex
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from maskrcnn_scratch import FasterRCNN, cli
from tests.training import toy

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


COMMANDS = [
    pytest.param(command.split("#")[0], id=f"{page.stem}-{number}")
    for page in PAGES
    for number, command in enumerate(
        re.findall(r"^(maskrcnn .*)$", page.read_text().replace("\\\n", " "), re.MULTILINE)
    )
]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2 and len(COMMANDS) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_these_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments are parsed as usual; the function of the command is not called."""
    words = shlex.split(command)[1:]
    name = next(name for name in cli.COMMANDS if words[: len(name.split())] == name.split())
    module = import_module(f"maskrcnn_scratch.cli.{name.split()[0]}")
    function = getattr(module, name.split()[-1])

    @functools.wraps(function)
    def parsed(*args: object, **kwargs: object) -> int:
        return 0

    monkeypatch.setattr(module, name.split()[-1], parsed)
    monkeypatch.delattr(module, "with_stored_defaults", raising=False)  # reads a run
    assert cli.main(words) == 0


def run_script(script: Path, log: Path) -> None:
    """Runs it as ``python example.py`` in its folder would, with what it prints in ``log``.

    A model resizes to 160 x 266 pixels by default, not to 800 x 1333, to take less time.
    """
    smaller = {"min_size": 160, "max_size": 266}
    parameters = signature(FasterRCNN.__init__).parameters.values()
    FasterRCNN.__init__.__defaults__ = tuple(
        smaller.get(parameter.name, parameter.default)
        for parameter in parameters
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is not parameter.empty
    )
    os.chdir(script.parent)
    sys.stdout = sys.stderr = log.open("w")
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example: str, tmp_path: Path) -> None:
    script, log = tmp_path / "example.py", tmp_path / "log"
    script.write_text(example)
    assert toy.run(run_script, script, log) == 0, log.read_text()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_numbers_are_those_of_the_reference_pages() -> None:
    """Errors of the section "Prove" and ratios of "Speed", which has them rounded."""
    readme = (ROOT / "README.md").read_text()
    parity = (ROOT / "docs/reference/parity_table.md").read_text()
    speed = (ROOT / "docs/reference/speed.md").read_text()
    prove = readme.partition("## Prove")[2].partition("\n## ")[0]
    errors = {float(error) for error in re.findall(r"\de-\d+", prove)}
    assert errors and errors <= {float(error) for error in re.findall(r"\de-\d+", parity)}
    counts = re.search(r"of ([\d, and]+) with three sets of weights ([\d, and]+) differ", parity)
    assert counts is not None
    total, differ = (sum(map(int, re.findall(r"\d+", numbers))) for numbers in counts.groups())
    words = {0: "none differs", 1: "one differs", 2: "two differ"}
    assert f"Of {total:,} detections" in prove and words[differ] in prove

    measured = [float(ratio) for ratio in re.findall(r"(\d+\.\d+)x", speed)]
    ratios = re.findall(r"([\d.]+)x\b", readme.partition("## Speed")[2])
    assert len(ratios) > 20
    for ratio in ratios:
        digits = len(ratio.partition(".")[2])
        assert any(f"{exact:.{digits}f}" == ratio for exact in measured), ratio
