"""Every swap of ``docs/swaps``: detects, trains, optimises and exports, and passes its check."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.component_check.host import images_and_targets
from maskrcnn_scratch.component_check.run import check_part
from maskrcnn_scratch.component_check.subject import Setting
from maskrcnn_scratch.export import ExportOptions, export_onnx
from maskrcnn_scratch.export.program import export_program
from maskrcnn_scratch.inference.optimize import optimize
from tools.swaps import parity
from tools.swaps.gallery import GALLERY, SWAPS, Swap

SIDE = 64
OWN_OUTPUTS = {"keypoints": "keypoints", "mask_iou": "mask_iou", "embeddings": "embeddings"}
FILES = sorted(path.stem for path in GALLERY.glob("*.py"))
MODELS = [swap for swap in SWAPS if swap.file != "repeat_factor"]
# Written as ONNX here, since they bring operators along; of the others the graph is made. The table
# has the verdicts of all (``tools.swaps.measure export``).
AS_ONNX = ("deformable", "point_rend", "mask_iou")

swaps = pytest.mark.parametrize("swap", MODELS, ids=lambda swap: swap.name)


def require(swap: Swap) -> None:
    package = {"timm_backbone": "timm", "swin": "torchvision", "deformable": "torchvision"}
    if swap.file in package:
        pytest.importorskip(package[swap.file])


def build(swap: Swap) -> MaskRCNN:
    require(swap)
    return swap.tiny()


def samples() -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Two images of shapes with keypoints: the corners of the boxes."""
    images, targets = images_and_targets(2, SIDE, 4)
    for target in targets:
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        corners = torch.stack(
            [torch.stack(each, 1) for each in ((x1, y1), (x2, y1), (x1, y2), (x2, y2))], 1
        )  # [G, 4, 2]
        target["keypoints"] = torch.nn.functional.pad(corners, (0, 1), value=1.0)
    return images, targets


def test_every_file_is_in_the_table() -> None:
    assert {swap.file for swap in SWAPS} == set(FILES)
    page = (GALLERY / "index.md").read_text()
    for file in FILES:
        assert f"{{literalinclude}} {file}.py" in page
        assert len((GALLERY / f"{file}.py").read_text().splitlines()) < 80


@swaps
def test_detects_and_optimizes(swap: Swap) -> None:
    model = build(swap).eval()
    images, _ = samples()
    with torch.no_grad():
        results = model(images)
        faster = optimize(model)(images)
    for result, other, image in zip(results, faster, images, strict=True):
        assert len(result["scores"]) > 0
        assert result["masks"].shape == (len(result["scores"]), 1, *image.shape[1:])
        assert bool((result["scores"].diff() <= 0).all())
        assert all(bool(value.isfinite().all()) for value in result.values())
        assert other.keys() == result.keys()
        assert swap.file not in OWN_OUTPUTS or OWN_OUTPUTS[swap.file] in result


@swaps
def test_trains(swap: Swap) -> None:
    model = build(swap).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for batch in (samples(), samples()):
        losses = model(*batch)
        assert all(bool(loss.isfinite()) for loss in losses.values()), losses
        optimizer.zero_grad()
        sum(losses.values(), start=torch.zeros(())).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
        optimizer.step()
    images, targets = samples()
    empty = [{name: value[:0] for name, value in target.items()} for target in targets]
    assert all(bool(loss.isfinite()) for loss in model(images, empty).values())


IN_INFERENCE = [swap for swap in MODELS if not swap.training_only]


@pytest.mark.parametrize("swap", IN_INFERENCE, ids=lambda swap: swap.name)
@pytest.mark.filterwarnings("ignore:outputs of the branches", "ignore::DeprecationWarning")
def test_exports(swap: Swap, tmp_path: Path) -> None:
    model = build(swap).eval()
    if swap.file not in AS_ONNX:
        export_program(model, ExportOptions((SIDE, SIDE)))
        return
    onnx = pytest.importorskip("onnx")
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    images, _ = samples()
    path = tmp_path / "model.onnx"
    report = export_onnx(model, path, (SIDE, SIDE), opset=swap.opset, images=images[:1])
    assert report.verdict == "passed", report
    assert onnx.load(path).opset_import[0].version == swap.opset


@swaps
def test_passes_its_check(swap: Swap) -> None:
    """As ``maskrcnn check`` does it; the swaps that are no single part are checked as a model."""
    require(swap)
    kind, name = swap.kind or ("model", "build")
    found = getattr(swap.module(), name)
    arguments = {"HardExamples": {"batch_size_per_image": 32}, "PointRend": {"channels": 64}}

    def make() -> Any:
        if kind == "model":
            return swap.tiny()
        return found(**arguments.get(name, {})) if isinstance(found, type) else found

    results = list(check_part(make, kind, Setting(side=SIDE), quick=True))  # type: ignore[arg-type]
    # Batch norm on the one location that the coarsest level has here needs more than one image.
    lacking = {"capability: DDP"} if swap.file == "bifpn" else set()
    assert [result for result in results if result.status == "FAIL"] == []
    assert {result.name for result in results if result.status == "no"} == lacking
    assert len(results) > 10


@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.name)
def test_parity(swap: Swap) -> None:
    require(swap)
    pytest.importorskip("torchvision")
    compared = parity.parity(swap)
    assert (compared is not None) == (swap.file in parity.PARITY)
    # Largest measured: 3e-7, of the embeddings, which keep the root's gradient finite.
    assert compared is None or compared[1] < 1e-5


def test_mask_iou_changes_the_order() -> None:
    swap = next(swap for swap in SWAPS if swap.file == "mask_iou")
    model = build(swap).eval()
    with torch.no_grad():
        stages = model.run_stages(samples()[0])
        of_class = stages.class_logits.softmax(2)
    found = stages.detections
    rows = torch.arange(2)[:, None]
    before = of_class[rows, found.proposal_indices, found.labels]
    product = before * stages.branch_outputs["mask_iou"]
    torch.testing.assert_close(found.scores, product.where(found.valid, 0))


def test_repeat_factors() -> None:
    from repeat_factor import RepeatFactorBatches, repeat_factors

    labels = [[1], [1, 2], [1], [], [1, 1]] * 4  # class 1 in 0.8, class 2 in 0.2 of the images
    factors = repeat_factors(labels, threshold=0.45)
    assert factors.tolist() == pytest.approx([1, 1.5, 1, 1, 1] * 4)
    sizes = np.full((20, 2), 8)
    batches = RepeatFactorBatches(sizes, 4, factors=factors)
    assert batches.images_per_epoch == 22 and batches.steps_per_epoch == 6
    counts = np.array([np.bincount(batches.order(epoch), minlength=20) for epoch in range(400)])
    assert set(counts[:, factors == 1].flat) == {1}
    assert set(counts[:, factors > 1].flat) == {1, 2}
    assert counts[:, factors > 1].mean() == pytest.approx(1.5, abs=0.05)
    assert len(list(islice(batches, 7))) == 7


def test_table_is_up_to_date() -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torchvision")
    from tools.swaps import measure

    assert measure.TABLE.read_text() == measure.table()
    verdicts = {s.name: s.training_only or measure.results(s)["onnx"] == "passed" for s in SWAPS}
    assert all(verdicts.values()), verdicts
    assert re.search(r"\d+ steps of \d+ images, seed \d+", measure.table())
