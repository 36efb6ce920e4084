"""Detections are the same with and without host synchronisation."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from maskrcnn_scratch import host_sync
from maskrcnn_scratch.host_sync import compute_valid, pack_entries
from maskrcnn_scratch.ops import batched_nms_padded
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.roi_heads.detections import select_detections
from maskrcnn_scratch.structures import Proposals
from tests.ops.inputs import random_boxes


@pytest.fixture
def as_on_device(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(host_sync, "can_sync", lambda tensor: False)
    return monkeypatch


def test_pack_entries() -> None:
    wanted = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    indices, valid = pack_entries(wanted)
    assert indices.tolist() == [[1, 3, 4], [0, 0, 0], [0, 0, 0]]
    assert valid.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    indices, valid = pack_entries(wanted[1:2])
    assert indices.tolist() == [[0]] and valid.tolist() == [[False]]


@pytest.mark.parametrize("valid", [[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], []])
def test_compute_valid(valid, as_on_device) -> None:
    is_valid = torch.tensor(valid, dtype=torch.bool)
    values = torch.rand(len(valid), 2, 3)
    values[~is_valid] = torch.nan
    computed = []

    def double(values: Tensor, others: Tensor) -> Tensor:
        computed.append(len(values))
        return values + others

    without_sync = compute_valid(double, is_valid, values, values)
    as_on_device.undo()
    with_sync = compute_valid(double, is_valid, values, values)
    assert computed == [len(valid), sum(valid)]
    assert torch.equal(with_sync, without_sync)
    assert torch.equal(with_sync, (2 * values).where(is_valid[:, None, None], 0))


def detect(class_logits: Tensor, box_regression: Tensor, proposals: Proposals) -> dict[str, Tensor]:
    detections = select_detections(
        class_logits, box_regression, proposals, torch.tensor([[200, 300]] * 4),
        score_thresh=0.05, nms_thresh=0.5, detections_per_img=20, min_size=1e-2,
        box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)), nms=batched_nms_padded,
    )  # fmt: skip
    return asdict(detections)


def test_detections_of_images_with_different_numbers_of_candidates(as_on_device) -> None:
    logits = torch.randn(4, 50, 7) * 2
    logits[1, :, 0] = 20  # only background
    logits[2, 3:, 0] = 20  # few candidates
    box_regression = torch.randn(4, 50, 7, 4)
    boxes = random_boxes(200, 100, 200).reshape(4, 50, 4)
    counts = torch.tensor([50, 50, 50, 0])  # the last image has no proposals
    proposals = Proposals(boxes, torch.rand(4, 50), counts, torch.zeros(4, 50).long())
    without_sync = detect(logits, box_regression, proposals)
    as_on_device.undo()
    with_sync = detect(logits, box_regression, proposals)
    assert with_sync.pop("masks") is without_sync.pop("masks") is None
    found = with_sync["counts"].tolist()
    assert found[0] == 20 and found[1] == found[3] == 0 < found[2] < 20
    for name, values in with_sync.items():
        assert torch.equal(values, without_sync[name]), name
