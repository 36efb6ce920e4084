"""A verification passes only for detections that are the same."""

import pytest
import torch

from maskrcnn_scratch.export.program import Detector, ExportOptions
from maskrcnn_scratch.export.to_file import export_to_file
from maskrcnn_scratch.export.verification import Trial, VerificationReport, match, verify

OPTIONS = ExportOptions((200, 240), batch=2)


def verdict(trials):
    return VerificationReport("onnx", OPTIONS, {}, trials).verdict


def test_detector_in_python_agrees(model, photos):
    detector = Detector(model, OPTIONS)
    trials = verify(model, OPTIONS, lambda inputs: detector(*inputs), photos)
    assert verdict(trials) == "passed"
    assert min(trials[0].num_detections) > 3


@pytest.mark.parametrize(
    "output, change",
    [
        ("boxes", lambda boxes: boxes + 0.02),
        ("boxes", lambda boxes: boxes + 5),  # these are other detections
        ("scores", lambda scores: scores - 2e-4),
        ("labels", lambda labels: labels % 6 + 1),
        ("masks", lambda masks: masks + 2e-3),
        ("num_detections", lambda number: number - 1),
    ],
)
def test_changed_output_does_not_pass(model, photos, output, change):
    detector = Detector(model, OPTIONS)

    def run(inputs):
        outputs = detector(*inputs)
        return {**outputs, output: change(outputs[output])}

    assert verdict(verify(model, OPTIONS, run, photos)) == "beyond tolerance"


def test_without_detections_there_is_nothing_to_compare():
    assert verdict([Trial((8, 8), [0, 0])]) == "no detections to compare"
    assert verdict([Trial((8, 8), [0], unmatched=1)]) == "beyond tolerance"


def test_match_ignores_order():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10.001, 10], [50, 50, 60, 60]])
    one = {
        "boxes": boxes,
        "labels": torch.tensor([1, 2, 1]),
        "scores": torch.tensor([0.90001, 0.9, 0.5]),
    }
    order = torch.tensor([1, 2, 0])
    ours, theirs = match(one, {name: value[order] for name, value in one.items()})
    assert ours.tolist() == [0, 1, 2]
    assert order[theirs].tolist() == [0, 1, 2]


@pytest.mark.slow
def test_file_that_disagrees_says_so(model, photos, tmp_path, monkeypatch):
    import json

    from maskrcnn_scratch.export import to_file

    kind = to_file.FORMATS["pt2"]

    def load_wrongly(path):
        run = kind.load(path)
        return lambda inputs: {**run(inputs), "scores": run(inputs)["scores"] * 0.99}

    monkeypatch.setitem(
        to_file.FORMATS, "pt2", to_file.FileFormat(".pt2", (), kind.convert, load_wrongly)
    )
    report = export_to_file(model, tmp_path / "model.pt2", ExportOptions((200, 240)), "pt2", photos)
    assert report.verdict == "beyond tolerance"
    assert json.loads((tmp_path / "model.pt2.json").read_text())["passed"] is False
