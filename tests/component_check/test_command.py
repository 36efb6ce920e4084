"""``maskrcnn check``: finding the part, exit status, output."""

from __future__ import annotations

import json
import sys

import pytest

from maskrcnn_scratch import cli
from maskrcnn_scratch.user_code import PartNotFoundError, build_part, find_part

GOOD = """
import torch
from torch import nn

class Head(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layer = nn.Linear(64 * 7 * 7, width)

    def forward(self, pooled):
        return self.layer(pooled.flatten(1)).relu()

def build(width=4):
    return Head(width)

def positive_part(pooled, power=1):
    return pooled.mean((2, 3)).relu() ** power

class Broken(Head):
    def forward(self, pooled):
        raise RuntimeError("no luck\\nat all")
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "my_parts_of_the_test.py"
    path.write_text(GOOD)
    yield path
    sys.modules.pop(path.stem, None)


def check(*words):
    return cli.main(["check", *map(str, words), "--side", "64", "--quick"])


@pytest.mark.parametrize("name, args", [("Head", '{"width": 16}'), ("positive_part", "{}")])
def test_a_good_part_passes(file, name, args, capsys):
    assert check(f"{file}:{name}", "--as", "box_head", "--args", args) == 0
    out = capsys.readouterr().out
    assert "ok              pickle" in out
    assert "checks pass." in out.splitlines()[-1]


def test_a_broken_part_fails_without_traceback(file, capsys):
    results = file.with_name("results.json")
    assert check(f"{file}:Broken", "--as", "box_head", "--json", results) == 1
    out, err = capsys.readouterr()
    assert "RuntimeError: no luck (my_parts_of_the_test.py:" in out
    assert "Traceback" not in out + err
    first, others = json.loads(results.read_text())
    assert first["name"] == "types and shapes" and first["status"] == "FAIL"
    assert others["status"] == "not applicable"


def test_a_file_that_cannot_be_imported_fails(file, capsys):
    file.write_text("import torch\nraise SystemExit('stop')\n")
    assert check(f"{file}:Head", "--as", "box_head") == 1
    assert "FAIL            import" in capsys.readouterr().out
    file.write_text("def broken(:\n")
    assert check(f"{file}:Head", "--as", "box_head") == 1
    assert "SyntaxError" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere.py:Part", "--as", "nms"], "nowhere.py is no file"),
        (["{file}", "--as", "nms"], "expected FILE.py:NAME"),
        (["{file}:Haed", "--as", "box_head"], "has no Haed: did you mean Head?"),
        (["no_such_package.part:Part", "--as", "nms"], "there is no module no_such_package"),
        (["{file}:Head", "--as", "box_head", "--args", "{"], "--args { is no JSON"),
        (["{file}:Head", "--as", "box_head", "--args", "[1]"], "is no JSON object"),
        (["{file}:Head", "--as", "box_head", "--channels", "0"], "--channels must be positive"),
        (["{file}:positive_part", "--as", "loss"], "say with --loss which one it replaces"),
    ],
)
def test_wrong_usage(file, words, message, capsys):
    assert check(*(word.replace("{file}", str(file)) for word in words)) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_arguments_that_the_part_does_not_take_fail(file, capsys):
    assert check(f"{file}:Head", "--as", "box_head", "--args", '{"depth": 3}') == 1
    assert "TypeError" in capsys.readouterr().out


def test_what_is_called_and_what_is_the_part(file):
    part = find_part(f"{file}:positive_part")
    assert build_part(part, {}) is part
    assert build_part(part, {"power": 2}).keywords == {"power": 2}
    assert build_part(find_part(f"{file}:build"), {}).layer.out_features == 4
    assert build_part(find_part(f"{file}:build"), {"width": 5}).layer.out_features == 5
    built = find_part(f"{file}:Head")()
    assert build_part(built, {}) is built
    with pytest.raises(TypeError, match="takes no --args"):
        build_part(built, {"width": 5})


def test_a_file_with_the_name_of_a_module_leaves_the_module_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "json.py").write_text("def part():\n    return 1\n")
    assert find_part(f"{tmp_path}/json.py:part")() == 1
    assert sys.modules["json"] is json
    with pytest.raises(PartNotFoundError):
        find_part(f"{tmp_path}/json.py:other")
