"""Whatever a checkpoint holds, loading it gives a model or one line that names the file."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model, load_trained
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.weights import WeightsError
from tests.messages import check_one_line

CONFIG = ModelConfig(
    architecture="small", weights="none", widths=(4, 4, 4, 4), min_size=(64,), max_size=64
)
GOOD: dict[str, Any] = {
    "model": build_model(CONFIG, 3).state_dict(),
    "config": {"model": asdict(CONFIG)},
    "class_names": {1: "cat", 2: "dog"},
    "category_labels": {10: 1, 20: 2},
}
JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=5),
        st.just("\ud800"), st.just("x" * 10**5), st.builds(torch.zeros, st.integers(0, 3)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), inner, max_size=3),
    ),
    max_leaves=4,
)  # fmt: skip
FIELDS = [("config", "model", name) for name in GOOD["config"]["model"]]
PLACES = st.sampled_from(
    [
        ("model",), ("config",), ("class_names",), ("category_labels",), ("config", "model"),
        ("class_names", 1), ("class_names", -1), ("category_labels", 10), ("category_labels", "a"),
        ("model", "backbone.body.conv1.weight"), ("model", "new"), *FIELDS, *FIELDS,
    ]
)  # fmt: skip


def changed(place: tuple[Any, ...], value: object) -> dict[str, Any]:
    checkpoint = copy.deepcopy(GOOD)
    inside: Any = checkpoint
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    return checkpoint


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=PLACES, value=JUNK)
@pytest.mark.filterwarnings("ignore")
def test_a_model_or_one_line(place: tuple[Any, ...], value: object, tmp_path: Path) -> None:
    file = tmp_path / "c.pt"
    torch.save(changed(place, value), file)
    try:
        load_trained(file)
    except (ValueError, WeightsError) as error:
        check_one_line(error, file, 600)


@pytest.mark.parametrize(
    "place, value, reason",
    [
        (("config", "model", "blocks"), (10**6,) * 4, "blocks are"),
        (("config", "model", "blocks"), (10**9, -(10**9), 1, 1), "blocks are"),
        (("class_names", 10**9), "cat", "should be"),
        (("config", "model", "widths"), (10**6,) * 4, "should be"),
        (("config", "model", "detections"), [1], r"detections is \[1\], not int"),
        (("config", "model", "max_size"), True, "max_size is True, not int"),
        (("config", "model", "pre_nms_top_n"), 2**63, f"pre_nms_top_n is {2**63}, not int"),
        (("config", "model", "min_size"), [64, "a"], r"min_size is \[64, 'a'\], not tuple"),
        (("config", "model", "architecture"), "x", "architecture is 'x', not Literal"),
        (("class_names",), ["cat"], "'class_names' is missing, or no dict"),
        (("category_labels", 10), 7, "'category_labels' are not labels"),
        (("config",), {}, "ModelConfig needs names and values"),
        (("model", "backbone.body.0.weight"), None, "is not a parameter of the model"),
        (("model", "rpn.head.cls_logits.bias"), torch.zeros(7), "should be"),
    ],
)
def test_sizes_are_compared_before_memory_is_taken(
    place: tuple[Any, ...], value: object, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.pt"
    torch.save(changed(place, value), file)
    with pytest.raises(ValueError, match=f"^{file}: no model can be made of it: .*{reason}"):
        load_trained(file)


@pytest.mark.parametrize("missing", ["config", "class_names", "category_labels", "model"])
def test_a_missing_section(missing: str, tmp_path: Path, capsys: Any) -> None:
    checkpoint = {key: value for key, value in GOOD.items() if key != missing}
    torch.save(checkpoint, tmp_path / "c.pt")
    assert main(["weights", "show", str(tmp_path / "c.pt")]) == 1
    assert capsys.readouterr().err.count("\n") <= 1
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    status = main(
        [
            "predict",
            str(picture),
            "--weights",
            str(tmp_path / "c.pt"),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    err = capsys.readouterr().err
    assert status == 1 and "c.pt" in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize("position", [9, 40, 100, 500])
def test_damaged_safetensors(command: str, position: int, tmp_path: Path, capsys: Any) -> None:
    from maskrcnn_scratch.weights import write_state_dict

    file = tmp_path / "w.safetensors"
    write_state_dict(GOOD["model"], file)
    content = bytearray(file.read_bytes())
    content[position] ^= 0x55
    file.write_bytes(content)
    (tmp_path / "a.png").write_bytes(b"")
    annotations = tmp_path / "a.json"
    annotations.write_text('{"images": [], "annotations": [], "categories": []}')
    inputs = [str(tmp_path / "a.png")]
    if command == "evaluate":
        inputs = ["--annotations", str(annotations), "--images", str(tmp_path)]
    assert main([command, *inputs, "--weights", str(file)]) == 1
    err = capsys.readouterr().err
    assert "w.safetensors: " in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "key, tensor",
    [
        ("backbone.body.conv1.weight", torch.zeros(64)),
        ("backbone.body.conv1.weight", torch.zeros(0, 10**9, 7, 7)),
        ("backbone.body.conv1.weight", torch.zeros(64, 3, 7, 7, 1)),
        ("roi_heads.box_predictor.cls_score.bias", torch.tensor(1.0)),
        ("roi_heads.box_predictor.cls_score.bias", torch.zeros(10**6)),
        ("roi_heads.box_predictor.cls_score.bias", torch.zeros(0)),
    ],
)
def test_odd_shapes(key: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    from maskrcnn_scratch import maskrcnn_resnet50_fpn

    with torch.device("meta"):
        shapes = maskrcnn_resnet50_fpn(weights_backbone=None).state_dict()
    weights = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in shapes.items()}
    torch.save(weights | {key: tensor}, tmp_path / "w.pth")
    # One line. Without ``as error``, whose traceback would keep the model until a collection.
    with pytest.raises(WeightsError, match=r"\A.*w\.pth.*\Z"):
        load_trained(tmp_path / "w.pth")
