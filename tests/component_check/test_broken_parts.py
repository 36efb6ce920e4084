"""Broken parts fail, each in the check that is about its fault, and the values are shown."""

from __future__ import annotations

import re

import pytest
import torch

from maskrcnn_scratch.component_check import in_model
from maskrcnn_scratch.component_check.result import verdict
from maskrcnn_scratch.component_check.run import check_part
from maskrcnn_scratch.component_check.subject import Setting
from maskrcnn_scratch.user_code import build_part
from tests.component_check import broken_parts, broken_training_parts

SETTING = Setting(side=64)
BROKEN = {**vars(broken_parts), **vars(broken_training_parts)}

# (part, kind, the check that fails, what it says)
FAULTS = [
    ("WrongChannels", "backbone", "types and shapes", r"float32 \[1, 64, 32, 32\], expected .*256"),
    ("OtherDtype", "backbone", "types and shapes", r"feature map '0' .* is float64"),
    ("OneSize", "backbone", "types and shapes", r"is \[8, 8\]; a stride of 16, .* \[4.0, 4.0\]"),
    ("ListOfMaps", "backbone", "types and shapes", "not a dict of maps"),
    ("RaisesAtOnce", "backbone", "types and shapes", r"KeyError: 'stage5' \(broken_parts.py:\d+\)"),
    ("NeedsAnArgument", "backbone", "construction", "TypeError: .*'width'"),
    ("CoarsestFirst", "backbone", "order of levels", r"'pool': \(1, 2\), '3': \(2, 4\)"),
    ("UnusedParameter", "backbone", "model: losses", "no gradient reaches unused.weight"),
    ("FoldedWrongly", "backbone", "model: optimize", "differs by"),
    ("CachesTheFirstBatch", "backbone", "deterministic", "output 0 of a second call .* differs"),
    ("HiddenWeights", "box_head", "state_dict", "another instance .* differs"),
    ("Noise", "box_head", "deterministic", "differs by up to"),
    ("BatchMean", "box_head", "batch independence", "a batch of 6 and a batch of 1"),
    ("Unpicklable", "box_head", "pickle", "Error: .*(pickle|lambda)"),
    ("RaisesForOneRoI", "box_head", "types and shapes", r"RuntimeError: .*broken_parts.py:\d+"),
    ("MemoryOrder", "box_head", "channels-last", "contiguous and channels-last"),
    ("WritesIntoItsInput", "rpn_head", "inputs unchanged", "was overwritten"),
    ("ForgetsLastLevel", "rpn_head", "types and shapes", "5 maps give objectness"),
    ("too_many_anchors", "anchor_generator", "types and shapes", r"\[2046, 4\].*\[1364, 4\]"),
    ("ColumnsFirst", "anchor_generator", "order of anchors", "the next column is"),
    ("nms_that_selects_padding", "nms", "padding", "padded entries .* are selected"),
    ("nms_worst_first", "nms", "best first", "scores are"),
    ("SwappedAxes", "roi_align", "values", "pixels from the centre"),
    ("NeedsOneDtype", "roi_align", "bf16 features, float32 RoIs", "features are torch.bfloat16"),
    ("matcher_out_of_range", "matcher", "value range", "0 to 5, expected -2 to 4"),
    ("matcher_needs_objects", "matcher", "zero objects", "IndexError"),
    ("RepeatsIndices", "sampler", "value range", "sampled more than once"),
    ("SamplesIgnored", "sampler", "positives and negatives", r"negatives have labels \[-1\]"),
    ("IgnoresTheGenerator", "sampler", "generator", "differs|instead of"),
    ("NotInverse", "box_coder", "decode(encode) = identity", r"box \[.*\] becomes \[.*\]"),
    ("Overflows", "box_coder", "value range", "deltas of 100: .* not finite"),
    ("loss_without_gradient", "loss", "gradient", "does not depend on the predictions"),
    ("loss_nan_without_objects", "loss", "zero objects", "the loss is nan"),
    ("loss_counts_ignored", "loss", "ignored boxes", "have a gradient of up to"),
    ("loss_per_box", "loss", "types and shapes", r"float32 \[40\], expected float32 \[\]"),
    ("loss_wrong_sign", "loss", "better is lower", "for right predictions"),
    ("predictor_of_coco", "mask_predictor", "types and shapes", r"\[6, 91, 28, 28\], .*\[6, 4,"),
    ("OneDeltaPerBox", "box_predictor", "types and shapes", r"box deltas is float32 \[6, 2\]"),
    ("OtherMasksForLabels", "mask_predictor", "masks of labels", "differ by"),
    ("BranchWithoutLosses", "branch", "losses of its own", "losses returns none"),
    ("BranchOfOneEntry", "branch", "types and shapes", r"'ones' \[\d, 1\]: expected .* per det"),
    ("BranchOfNothing", "branch", "types and shapes", "detect returns no outputs"),
    ("not_a_detector", "model", "types and shapes", "expected a GeneralizedRCNN"),
]  # fmt: skip


def results_of(name, kind, **options):
    return check_part(lambda: build_part(BROKEN[name], {}), kind, SETTING, quick=True, **options)


@pytest.mark.parametrize("name, kind, check, reason", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_broken_part_fails_for_its_reason(name, kind, check, reason):
    for result in results_of(name, kind):
        if result.status == "FAIL":
            assert "\n" not in result.detail and "Traceback" not in result.detail
            if result.name == check:
                assert re.search(reason, result.detail), result.detail
                return
    pytest.fail(f"{check} did not fail")


@pytest.mark.parametrize(
    "name, kind, check",
    [
        ("Overflows", "box_coder", "value range"),
        ("OtherMasksForLabels", "mask_predictor", "masks of labels"),
        ("loss_counts_ignored", "loss", "all ignored, no boxes, ignored boxes"),
    ],
)
def test_nothing_else_fails(name, kind, check):
    failed = [result.name for result in results_of(name, kind) if result.status == "FAIL"]
    assert ", ".join(failed) == check


def test_a_stride_that_is_no_power_of_two_is_stated():
    first = next(iter(results_of("Stride14", "backbone")))
    assert first.status == "ok"
    assert "strides '0': 14; not all are powers of two" in first.detail


def test_after_a_failure_of_types_and_shapes_nothing_else_runs():
    found = broken_parts.WrongChannels
    results = list(check_part(found, "backbone", SETTING))
    assert [result.status for result in results] == ["FAIL", "not applicable"]
    assert verdict(results) == "1 of 1 checks fail, first: types and shapes"


def test_optimize_that_changes_results_is_noticed(monkeypatch):
    """Whatever ``optimize`` recognises: a copy with another bias fails."""

    def with_another_bias(model):
        model = in_model.copy.deepcopy(model)
        with torch.no_grad():
            model.roi_heads.box_predictor.cls_score.bias += 1
        return model

    monkeypatch.setattr(in_model, "optimize", with_another_bias)
    (failed,) = [r for r in results_of("Small", "backbone") if r.status == "FAIL"]
    assert failed.name == "model: optimize"
    assert failed.detail.startswith("class_logits differs by")


@pytest.mark.slow
def test_a_loss_that_does_not_fall_is_noticed(monkeypatch):
    monkeypatch.setattr(in_model, "TRAINING_STEPS", 15)
    results = results_of("loss_ascends", "loss", train=True)
    (training,) = [result for result in results if result.name == "training"]
    assert training.status == "FAIL"
    assert "mean loss" in training.detail
