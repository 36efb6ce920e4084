"""Branches of the RoI heads: their losses, their outputs, and where the outputs arrive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN, MultiScaleRoIAlign, Predictor
from maskrcnn_scratch.evaluation.model_results import coco_results, detect_rle
from maskrcnn_scratch.export.program import Detector, ExportOptions
from maskrcnn_scratch.inference.merge_tiles import Piece, merge_pieces
from maskrcnn_scratch.inference.optimize import optimize
from maskrcnn_scratch.inference.writers import ResultWriter
from maskrcnn_scratch.structures import Detections, Result, boxes_to_rois, list_to_rois
from tests.model.swapped import build, detect, images, select_nothing, train


class Offset(nn.Module):
    """From each box to the point that it predicts; its target is the centre of the object."""

    def __init__(self, pool: MultiScaleRoIAlign) -> None:
        super().__init__()
        self.pool = pool
        self.layer = nn.Linear(8 * 7 * 7, 2)
        self.samples: Any = None

    def predict(self, features: Any, rois: Tensor, padded_size: tuple[int, int]) -> Tensor:
        offsets = self.layer(self.pool(features, rois, [padded_size]).flatten(1))
        return (rois[:, 1:3] + rois[:, 3:5]) / 2 + offsets  # [R, 2]

    def losses(
        self, features: Any, samples: Any, targets: Any, padded_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        self.samples = samples
        boxes, matched, _ = samples.of_objects()
        points = self.predict(features, list_to_rois(boxes), padded_size)
        centers = [
            (target["boxes"][of_image, :2] + target["boxes"][of_image, 2:]) / 2
            for target, of_image in zip(targets, matched, strict=True)
            if len(of_image)
        ]
        expected = torch.cat(centers) if centers else points
        return {"loss_point": F.l1_loss(points, expected, reduction="sum")}

    def detect(
        self, features: Any, detections: Detections, padded_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        points = self.predict(features, boxes_to_rois(detections.boxes), padded_size)
        return {"points": points.unflatten(0, detections.scores.shape)}

    def postprocess(
        self, result: Result, image_size: Tensor, original_image_size: tuple[int, int]
    ) -> Result:
        scale = torch.tensor(original_image_size) / image_size  # (height, width)
        return {**result, "points": result["points"] * scale.flip(0)}


def with_branch(**parts: Any) -> MaskRCNN:
    pool = MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
    return build(branches={"point": Offset(pool)}, **parts)


def test_a_branch_has_losses_from_the_same_samples() -> None:
    model = with_branch()
    losses = train(model)
    assert list(losses)[3] == "loss_point" and losses["loss_point"] > 0
    branch = model.roi_heads.branches["point"]
    assert branch.layer.weight.grad.abs().sum() > 0
    assert "roi_heads.branches.point.layer.weight" in model.state_dict()
    for name, loss in train(build()).items():  # the others have not changed
        assert torch.equal(loss, losses[name])


def test_outputs_of_a_branch_travel_to_the_results() -> None:
    model = with_branch(min_size=32)  # the images are resized
    nn.init.zeros_(model.roi_heads.branches["point"].layer.weight)
    nn.init.zeros_(model.roi_heads.branches["point"].layer.bias)
    model.roi_heads.score_thresh = 0.0
    predictor = Predictor(model, score_threshold=0.0)
    for results in (detect(model), predictor(images())):
        for result in results:
            centers = (result["boxes"][:, :2] + result["boxes"][:, 2:]) / 2
            assert len(centers) > 0
            torch.testing.assert_close(result["points"], centers)
    kept = Predictor(model, score_threshold=0.36)(images()[0])
    assert len(kept["points"]) == len(kept["scores"])
    with torch.no_grad():
        optimized = optimize(model)
        for one, other in zip(optimized.detect(images()), detect(model), strict=True):
            torch.testing.assert_close(one["points"], other["points"], rtol=1e-3, atol=1e-2)


def test_outputs_of_a_branch_travel_to_files_or_are_reported_as_lost() -> None:
    model = with_branch().eval()
    model.roi_heads.score_thresh = 0.0
    expected = detect(model)
    encoded = detect_rle(model, images())
    for result, wanted in zip(encoded, expected, strict=True):
        torch.testing.assert_close(result["points"], wanted["points"])
    described = ResultWriter({}, {}).describe(encoded[0])
    assert [each["outputs"]["points"] for each in described] == encoded[0]["points"].tolist()
    with pytest.warns(UserWarning, match="lost: COCO results have no points"):
        coco_results(encoded[0], 1, {1: 1})
    piece = Piece((0, 0, 64, 64), (64, 64), {k: v for k, v in encoded[0].items() if k != "masks"})
    with pytest.warns(UserWarning, match="lost: merged tiles have no points"):
        merge_pieces([piece])


def test_a_branch_with_nothing_to_do() -> None:
    for result in detect(with_branch(box_nms=select_nothing)):
        assert result["points"].shape == (0, 2)


def test_outputs_of_a_branch_called_as_a_stage() -> None:
    model = with_branch().eval()
    batch, _ = model.transform(images())
    with torch.no_grad():
        features = model.extract_features(batch.tensors)
        proposals, _ = model.rpn(batch, features)
        results, _ = model.roi_heads(features, proposals, batch.image_sizes)
    assert all(len(result["points"]) == len(result["boxes"]) for result in results)


def test_names_of_branches_are_not_taken_twice() -> None:
    class Boxes(Offset):
        def detect(self, *args: Any) -> dict[str, Tensor]:
            return {"boxes": super().detect(*args)["points"]}

    class Short(Offset):
        def detect(self, *args: Any) -> dict[str, Tensor]:
            return {"points": super().detect(*args)["points"][:, :3]}

    class Losses(Offset):
        def losses(self, *args: Any) -> dict[str, Tensor]:
            return {"loss_mask": super().losses(*args)["loss_point"]}

    pool = MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
    with pytest.raises(ValueError, match="branch 'a' returns 'boxes': the name is taken"):
        detect(build(branches={"a": Boxes(pool)}))
    with pytest.raises(ValueError, match=r"'points' \[2, 3, 2\]: expected \[2, 10, ...\]"):
        detect(build(branches={"a": Short(pool)}))
    with pytest.raises(ValueError, match="losses 'loss_mask': the name is taken"):
        build(branches={"a": Losses(pool)})


def test_an_export_says_that_it_loses_the_outputs_of_branches() -> None:
    options = ExportOptions(image_size=(64, 64))
    with pytest.warns(UserWarning, match="branches point are lost"):
        Detector(with_branch(), options)


class Rescored(Offset):
    """New scores, the worst first, and the masks that it was given."""

    def losses(  # type: ignore[override]
        self, features: Any, samples: Any, targets: Any, padded_size: Any, mask_logits: Tensor
    ) -> dict[str, Tensor]:
        assert len(mask_logits) == len(samples.of_objects()[2])
        assert mask_logits.requires_grad
        return {"loss_quality": mask_logits.square().sum() + self.layer.bias.sum()}

    def detect(
        self, features: Any, detections: Detections, padded_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        assert detections.masks is not None
        size = detections.masks.mean((2, 3, 4))
        return {"scores": 1 - detections.scores, "size": size}

    def postprocess(self, result: Result, *sizes: Any) -> Result:
        return result


def test_a_branch_may_ask_for_mask_logits_and_replace_the_scores() -> None:
    pool = MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
    model = build(branches={"quality": Rescored(pool)})
    train(model)
    for one, other in zip(detect(model), detect(build()), strict=True):
        assert len(one["scores"]) > 1 and bool((one["scores"].diff() <= 0).all())
        order = (1 - other["scores"]).argsort(descending=True, stable=True)
        torch.testing.assert_close(one["scores"], (1 - other["scores"])[order])
        for name in ("boxes", "labels", "masks"):
            assert torch.equal(one[name], other[name][order])
    with torch.no_grad():
        stages = model.run_stages(images())
    means = stages.detections.masks.mean((2, 3, 4))  # type: ignore[union-attr]
    assert torch.equal(stages.branch_outputs["size"], means)
    batch, _ = model.transform(images())
    with torch.no_grad():
        features = model.extract_features(batch.tensors)
        proposals, _ = model.rpn(batch, features)
        results, _ = model.roi_heads(features, proposals, batch.image_sizes)
    assert all(bool((result["scores"].diff() <= 0).all()) for result in results)
