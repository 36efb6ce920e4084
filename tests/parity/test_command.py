"""``maskrcnn parity``: what it prints and writes, checks by name, and replaced parts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.parity import report, run
from maskrcnn_scratch.parity.compare import Check, Worst
from maskrcnn_scratch.parity.half import half_checks
from maskrcnn_scratch.parity.names import PARTS, Selection, all_names, part_of
from maskrcnn_scratch.parity.ops import op_checks
from maskrcnn_scratch.parity.photographs import photographs, smaller
from maskrcnn_scratch.parity.replacement import Replacements
from maskrcnn_scratch.parity.run import (
    NORM_LAYERS,
    WEIGHT_SETS,
    Run,
    model_checks,
)


def test_command_prints_writes_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [
        Check("ops", "nms", 0.0, 0.0, "equal", True),
        Check("stages", "x <y>", torch.inf, 1, "equal", False,
              worst=Worst("[3]", 1.0, 2.0, {"boxes[3]": "[0, 0, 1, 1]"})),
    ]  # fmt: skip
    files = {option: str(tmp_path / f"a.{option}") for option in ("json", "markdown", "html")}
    arguments = ["parity", *(word for name in files for word in (f"--{name}", files[name]))]
    for made, status in ((checks[:1], 0), (checks, 1)):
        monkeypatch.setattr(run, "parity_checks", lambda _, made=made: iter(made))
        assert main(arguments) == status
        assert [one["name"] for one in json.loads((tmp_path / "a.json").read_text())] == [
            check.name for check in made
        ]
        assert "| ops | nms | 0 | equal |" in (tmp_path / "a.markdown").read_text()
    assert "Infinity" not in (tmp_path / "a.json").read_text()
    page = (tmp_path / "a.html").read_text()
    assert "stages x &lt;y&gt;" in page and "boxes[3]: [0, 0, 1, 1]" in page
    out = capsys.readouterr().out
    assert "1 of 2 checks fail, first: stages x" in out
    assert "worst element [3]: 1.0, torchvision 2.0\n  boxes[3]: [0, 0, 1, 1]" in out


def test_all_parts_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """``maskrcnn parity`` makes the checks that ``test_parity.py`` makes one by one."""
    made: list[object] = []
    record = lambda *arguments: made.append(arguments) or iter(())
    names = ("op", "half", "detectron2", "model", "losses", "float64")
    for name in (f"{name}_checks" for name in names):
        monkeypatch.setattr(run, name, record)
    monkeypatch.setattr(run, "_model", lambda *_, **__: None)
    list(run.parity_checks(Run(min_size=160)))
    assert len(made) == 3 + len(WEIGHT_SETS) + len(NORM_LAYERS) + 1
    assert [len(batches) for _, _, batches in made[3:6]] == [8, 8, 10]


def test_checks_are_selected_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["parity", "ops.nms", "half.box_iou", "detectron2.anchors"]) == 0
    rows = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()[2:-1]]
    assert rows == [["ops", "nms"]] * 3 + [["half", "box_iou,"]] * 2 + [["detectron2", "anchors"]]
    assert main(["parity", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == all_names()
    assert main(["parity", "ops.nsm"]) == 1
    assert "no parity check 'ops.nsm': did you mean ops.nms?" in capsys.readouterr().err
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert main(["parity", "losses", "--image", str(tmp_path / "a.png")]) == 2
    assert "no check of losses can be made" in capsys.readouterr().err


def test_names_of_checks_are_those_that_run() -> None:
    cpu = torch.device("cpu")
    for group, checks in (("ops", op_checks), ("half", half_checks)):
        for part in PARTS[group]:
            assert {part_of(c.level, c.name) for c in checks(cpu, [part])} == {part}
    for norm_layer in NORM_LAYERS:
        name = norm_layer.__name__
        for check in (f"{name}, 0+1+64 objects", f"{name}, 8 steps",
                      f"gradients, {name}, 64 objects"):  # fmt: skip
            assert part_of("losses", check) in PARTS["losses"]


def test_a_replaced_part_changes_the_checks_that_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "parts_of_the_parity_test.py"
    file.write_text(
        "from maskrcnn_scratch.ops import batched_nms_padded as same\n"
        "def agnostic(boxes, scores, groups, *more):\n"
        "    return same(boxes, scores, groups * 0, *more)\n"
    )
    photograph = smaller(photographs()[0], 96)
    run = Run(
        images=[photograph],
        min_size=64,
        selection=Selection(("stages.proposals", "stages.detections", "model")),
        architecture="fasterrcnn_resnet50_fpn",
        replacements=Replacements((f"roi_heads.nms={file}:agnostic", f"rpn.nms={file}:same")),
    )
    checks = list(model_checks(run, 0, [[photograph]]))
    # Of so few pixels the ResNet is not calibrated well, which the complete model shows.
    assert all(check.before and check.before.passed for check in checks if check.level == "stages")
    assert [(part_of(check.level, check.name), check.changed) for check in checks] == [
        ("proposals", False), ("detections", True), ("detections", True),
    ]  # fmt: skip
    assert "change 2 checks: stages detections" in report.verdict(checks)


@pytest.mark.parametrize(
    "option, message",
    [
        ("roi_heads.nmx=torch:relu", "--replace .*: RoIHeads has no 'nmx'; did you mean 'nms'"),
        ("roi_heads.nms=torch:rellu", "torch has no rellu: did you mean relu?"),
        ("roi_heads.box_head=torch:relu", "cannot assign .* as child module 'box_head'"),
        ("roi_heads.nms", r"give it as PATH=FILE\.py:NAME"),
    ],
)
def test_a_replacement_that_is_impossible(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replacements((option,)).applied_to(small_maskrcnn(3))


def test_a_replacement_that_is_called_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, as for all errors of the user's code."""
    monkeypatch.setattr("maskrcnn_scratch.parity.run.parity_checks", lambda run: call(run))

    def call(run: Run) -> list[Check]:
        torch.relu(*range(6))  # type: ignore[call-arg, arg-type]
        return []

    assert main(["parity", "stages", "--replace", "roi_heads.nms=torch:relu"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: --replace roi_heads.nms=torch:relu: TypeError: relu() takes 1" in line
    with pytest.raises(TypeError, match="relu"):
        main(["parity", "stages"])
