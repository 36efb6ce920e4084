"""Parts by constructor argument, what they may ask for and what they may return in addition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import (
    AnchorGenerator,
    BoxCoder,
    FasterRCNN,
    FastRCNNPredictor,
    GeneralizedRCNNTransform,
    MaskRCNN,
    MaskRCNNPredictor,
    Matcher,
    MultiScaleRoIAlign,
    Predictor,
)
from maskrcnn_scratch.builders.small import small_fasterrcnn, small_maskrcnn
from maskrcnn_scratch.call_part import asks_for, with_context
from maskrcnn_scratch.component_check import loss as check_of_loss
from maskrcnn_scratch.evaluation.model_results import coco_results, detect_rle
from maskrcnn_scratch.export.program import Detector, ExportOptions
from maskrcnn_scratch.inference.merge_tiles import Piece, merge_pieces
from maskrcnn_scratch.inference.optimize import optimize
from maskrcnn_scratch.inference.writers import ResultWriter
from maskrcnn_scratch.inspect.training_sample import training_sample
from maskrcnn_scratch.ops import batched_nms_padded
from maskrcnn_scratch.structures import (
    Detections,
    Proposals,
    Result,
    boxes_to_rois,
    list_to_rois,
)
from maskrcnn_scratch.targets.sampler import BalancedPositiveNegativeSampler

SIZES = ((16,), (32,), (64,))
RPN_PARTS = {
    "rpn_box_coder": "box_coder",
    "rpn_nms": "nms",
    "rpn_proposal_matcher": "proposal_matcher",
    "rpn_fg_bg_sampler": "fg_bg_sampler",
    "rpn_loss_objectness": "loss_objectness",
    "rpn_loss_box_reg": "loss_rpn_box_reg",
}
BOX_PARTS = {
    "box_coder": "box_coder",
    "box_nms": "nms",
    "box_proposal_matcher": "proposal_matcher",
    "box_fg_bg_sampler": "fg_bg_sampler",
    "box_loss_classifier": "loss_classifier",
    "box_loss_box_reg": "loss_box_reg",
    "mask_loss": "loss_mask",
}


class Backbone(nn.Module):
    """Three maps of strides 4, 8 and 16."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [self.conv(x)]
        for _ in range(2):
            maps.append(F.max_pool2d(maps[-1], 2))
        return {str(i): feature for i, feature in enumerate(maps)}


def build(num_classes: int | None = 3, **parts: Any) -> MaskRCNN:
    torch.manual_seed(0)
    options: dict[str, Any] = {"min_size": 64}
    if "rpn" not in parts:
        options["rpn_anchor_generator"] = AnchorGenerator(SIZES, (1.0, 2.0))
        options |= {"rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 50}
    if "roi_heads" not in parts:
        options |= {"box_batch_size_per_image": 32, "box_detections_per_img": 10}
        options["mask_head"] = nn.Conv2d(8, 256, 1)
    return MaskRCNN(Backbone(), num_classes, **{**options, **parts})


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 64, 80, generator=generator), torch.rand(3, 72, 64, generator=generator)]


def targets() -> list[dict[str, Tensor]]:
    """Two objects, and none."""
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 60.0, 60.0]])
    masks = torch.zeros(2, 64, 80, dtype=torch.uint8)
    masks[0, 8:40, 8:40] = masks[1, 20:60, 30:60] = 1
    return [
        {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks},
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 72, 64, dtype=torch.uint8),
        },
    ]


def train(model: MaskRCNN) -> dict[str, Tensor]:
    losses = model.train().losses(images(), targets(), torch.Generator().manual_seed(0))
    sum(losses.values(), torch.zeros(())).backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())
    for parameter in model.parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())
    return losses


@torch.no_grad()
def detect(model: MaskRCNN) -> list[dict[str, Tensor]]:
    model.roi_heads.score_thresh = 0.0
    return model.eval().detect(images())


@pytest.mark.parametrize("argument", [*RPN_PARTS, *BOX_PARTS])
def test_every_part_is_an_argument(argument: str) -> None:
    usual = build()
    stage, attribute = (
        ("rpn", RPN_PARTS[argument])
        if argument in RPN_PARTS
        else ("roi_heads", BOX_PARTS[argument])
    )
    part = getattr(getattr(usual, stage), attribute)

    class Wrapped:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return part(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(part, name)

    wrapped = Wrapped()
    model = build(**{argument: wrapped})
    assert getattr(getattr(model, stage), attribute) is wrapped
    for name, loss in train(build()).items():
        assert torch.equal(loss, train(model)[name])


def test_whole_stages_are_arguments() -> None:
    usual = build()
    model = build(None, rpn=usual.rpn, roi_heads=usual.roi_heads)
    assert model.rpn is usual.rpn and model.roi_heads is usual.roi_heads
    boxes_only = FasterRCNN(Backbone(), 3, rpn=usual.rpn, transform=usual.transform)
    assert boxes_only.rpn is usual.rpn and boxes_only.transform is usual.transform


@pytest.mark.parametrize(
    "stage, argument, value",
    [
        ("rpn", "rpn_nms_thresh", 0.5),
        ("rpn", "rpn_nms", batched_nms_padded),
        ("roi_heads", "num_classes", 4),
        ("roi_heads", "box_nms", batched_nms_padded),
        ("roi_heads", "mask_loss", F.mse_loss),
        ("transform", "min_size", 64),
        ("transform", "size_divisible", 16),
    ],
)
def test_a_stage_and_parts_of_it_are_refused(stage: str, argument: str, value: Any) -> None:
    whole = getattr(build(), stage)
    options: dict[str, Any] = {} if stage == "roi_heads" else {"num_classes": 3}
    with pytest.raises(ValueError, match=f"{stage} is passed in whole: {argument} must be set"):
        FasterRCNN(Backbone(), **{**options, stage: whole, argument: value})


class OwnStage:
    """An RPN that is no ``RegionProposalNetwork`` and has none of its parts."""

    def __init__(self, rpn: Any) -> None:
        self.predict, self.propose, self.losses = rpn.predict, rpn.propose, rpn.losses


def test_a_stage_needs_its_protocol_only() -> None:
    usual = build()
    model = build(rpn=OwnStage(usual.rpn))
    model.backbone, model.roi_heads = usual.backbone, usual.roi_heads
    assert not isinstance(model.rpn, nn.Module)
    for one, other in zip(detect(model), detect(usual), strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
    assert train(model).keys() == train(usual).keys()


def test_context_is_given_to_those_who_ask() -> None:
    class Asking(nn.Module):
        def forward(self, x: int, level_sizes: int = 0) -> int:
            return x + level_sizes

    assert asks_for(Asking(), "level_sizes") and not asks_for(len, "level_sizes")
    assert not asks_for(lambda *args, **kwargs: 0, "level_sizes")
    assert with_context(with_context(Asking(), other=1), level_sizes=3)(2) == 5
    assert with_context(len, level_sizes=3) is len


def soft_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, max_out: int, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Not Soft-NMS itself: halves the scores of what NMS selects."""
    indices, counts = batched_nms_padded(boxes, scores, groups, threshold, max_out, num_groups)
    return indices, counts, scores.gather(1, indices) / 2


def test_nms_may_return_scores() -> None:
    usual, halved = build(), build(box_nms=soft_nms)
    for one, other in zip(detect(halved), detect(usual), strict=True):
        assert len(one["scores"]) > 0
        assert torch.equal(one["scores"] * 2, other["scores"])
        assert torch.equal(one["boxes"], other["boxes"])
    with torch.no_grad():
        proposals = build(rpn_nms=soft_nms).eval().run_stages(images()).proposals
        reference = build().eval().run_stages(images()).proposals
    assert torch.equal(proposals.scores * 2, reference.scores)
    assert bool((proposals.scores[~proposals.valid] == 0).all())


def select_nothing(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, max_out: int, num_groups: int
) -> tuple[Tensor, Tensor]:
    num_images = len(boxes)
    return groups.new_zeros((num_images, 0)), groups.new_zeros(num_images)


@pytest.mark.parametrize("argument", ["rpn_nms", "box_nms"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_nms_may_select_nothing(argument: str, agnostic: bool) -> None:
    model = (
        class_agnostic(**{argument: select_nothing})
        if agnostic
        else build(**{argument: select_nothing})
    )
    for result in detect(model):
        assert result["boxes"].shape == (0, 4)
        assert result["masks"].shape[:2] == (0, 1)
    train(model)


def test_matchers_may_ask_for_level_sizes() -> None:
    seen = []

    class PerLevel(Matcher):
        def __call__(self, gt_boxes: Tensor, boxes: Tensor, *, level_sizes: list[int]) -> Tensor:
            seen.append((list(level_sizes), len(boxes)))
            return super().__call__(gt_boxes, boxes)

    train(build(rpn_proposal_matcher=PerLevel(0.7, 0.3, True)))
    assert all(len(sizes) == 3 and sum(sizes) == num_boxes for sizes, num_boxes in seen)


class Hardest(BalancedPositiveNegativeSampler):
    """OHEM: the boxes with the highest losses, which it remembers."""

    def __call__(  # type: ignore[override]
        self,
        labels: list[Tensor],
        generator: torch.Generator | None = None,
        *,
        losses: list[Tensor],
        scores: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        self.seen = labels, losses, scores
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for of_image, loss in zip(labels, losses, strict=True):
            kept = loss.masked_fill(of_image < 0, -1).topk(min(64, len(loss))).indices
            found[0].append(kept[of_image[kept] >= 1])
            found[1].append(kept[of_image[kept] == 0])
        return found


@pytest.mark.parametrize("as_module", [False, True])
def test_samplers_may_ask_for_losses_and_scores(as_module: bool) -> None:
    rpn, box = Hardest(64, 0.5), Hardest(64, 0.5)

    class Module(nn.Module):
        def forward(self, labels: Any, generator: Any = None, *, losses: Any, scores: Any) -> Any:
            return box(labels, generator, losses=losses, scores=scores)

    train(build(rpn_fg_bg_sampler=rpn, box_fg_bg_sampler=Module() if as_module else box))
    for labels, losses, scores in (rpn.seen, box.seen):
        assert len(labels) == len(losses) == len(scores) == 2
        for of_image, loss, score in zip(labels, losses, scores, strict=True):
            assert loss.shape == of_image.shape and not loss.requires_grad
            assert bool((loss[of_image < 0] == 0).all()) and len(score) == len(loss)
    labels, losses, scores = box.seen
    of_label = scores[0][torch.arange(len(labels[0])), labels[0].clamp(min=0)]
    expected = (-of_label.log()).masked_fill(labels[0] < 0, 0)
    torch.testing.assert_close(losses[0], expected)
    labels, losses, scores = rpn.seen
    of_label = torch.where(labels[0] > 0, scores[0], 1 - scores[0])
    torch.testing.assert_close(losses[0], (-of_label.log()).masked_fill(labels[0] < 0, 0))


def test_box_losses_may_ask_for_boxes_and_their_coder() -> None:
    seen: dict[str, tuple[Tensor, Tensor, Any]] = {}

    def rpn_loss(
        deltas: Tensor, labels: Tensor, targets: Tensor, anchors: Tensor, box_coder: BoxCoder
    ) -> Tensor:
        seen["rpn"] = (labels, box_coder.decode(targets, anchors), box_coder)
        return (box_coder.decode(deltas, anchors) - box_coder.decode(targets, anchors)).abs().mean()

    def box_loss(
        deltas: Tensor, labels: Tensor, targets: Tensor, proposals: Tensor, box_coder: BoxCoder
    ) -> Tensor:
        seen["box"] = (labels, box_coder.decode(targets, proposals), box_coder)
        return deltas.abs().mean()

    def mask_loss(logits: Tensor, labels: Tensor, masks: Tensor, proposals: Tensor) -> Tensor:
        assert len(proposals) == len(logits) and proposals.shape[1] == 4
        return logits.abs().sum()

    model = build(rpn_loss_box_reg=rpn_loss, box_loss_box_reg=box_loss, mask_loss=mask_loss)
    train(model)
    assert seen["rpn"][2] is model.rpn.box_coder and seen["box"][2] is model.roi_heads.box_coder
    resized = model.eval().transform(images(), targets())[1]
    assert resized is not None
    for labels, decoded, _ in seen.values():  # the decoded targets are the objects
        objects = decoded[labels > 0]
        assert len(objects) > 0
        distance = (objects[:, None] - resized[0]["boxes"]).abs().amax(2).amin(1)
        assert float(distance.max()) < 1e-2


class AgnosticPredictor(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.cls_score = nn.Linear(1024, num_classes)
        self.bbox_pred = nn.Linear(1024, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


class AllMasks(MaskRCNNPredictor):
    """Has no argument ``labels``."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input)


def class_agnostic(
    predictor: type[MaskRCNNPredictor] = MaskRCNNPredictor, **parts: Any
) -> MaskRCNN:
    return build(
        None, box_predictor=AgnosticPredictor(), mask_predictor=predictor(256, 256, 1), **parts
    )


@pytest.mark.parametrize("predictor", [MaskRCNNPredictor, AllMasks])
def test_class_agnostic_predictors_equal_those_with_equal_classes(
    predictor: type[MaskRCNNPredictor],
) -> None:
    agnostic = class_agnostic(predictor)
    repeated = build(
        None, box_predictor=FastRCNNPredictor(1024, 3), mask_predictor=predictor(256, 256, 3)
    )
    weights = dict(agnostic.state_dict())
    for name in ("box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits"):
        for kind in ("weight", "bias"):
            key = f"roi_heads.{name}.{kind}"
            weights[key] = torch.cat([weights[key]] * 3)
    repeated.load_state_dict(weights)
    for one, other in zip(detect(agnostic), detect(repeated), strict=True):
        assert len(one["boxes"]) > 0 and one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-4)
    losses = train(repeated)
    for name, loss in train(agnostic).items():
        torch.testing.assert_close(loss, losses[name], rtol=1e-4, atol=1e-5)
    weight = "roi_heads.box_predictor.bbox_pred.weight"
    gradients = repeated.get_parameter(weight).grad, agnostic.get_parameter(weight).grad
    assert gradients[0] is not None and gradients[1] is not None
    torch.testing.assert_close(
        gradients[0].unflatten(0, (3, 4)).sum(0), gradients[1], rtol=1e-3, atol=1e-5
    )


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


def test_inspect_gives_parts_what_they_ask_for() -> None:
    class PerLevel(Matcher):
        def __call__(self, gt_boxes: Tensor, boxes: Tensor, *, level_sizes: list[int]) -> Tensor:
            assert sum(level_sizes) == len(boxes)
            return super().__call__(gt_boxes, boxes)

    def corners(deltas: Tensor, targets: Tensor, boxes: Tensor, box_coder: BoxCoder) -> Tensor:
        difference = box_coder.decode(deltas, boxes) - box_coder.decode(targets, boxes)
        return difference.abs().mean(1)

    def rpn_loss(
        deltas: Tensor, labels: Tensor, targets: Tensor, anchors: Tensor, box_coder: BoxCoder
    ) -> Tensor:
        return (corners(deltas, targets, anchors, box_coder) * (labels > 0)).mean()

    def box_loss(
        deltas: Tensor, labels: Tensor, targets: Tensor, proposals: Tensor, box_coder: BoxCoder
    ) -> Tensor:
        return (corners(deltas, targets, proposals, box_coder) * (labels > 0)).mean()

    model = class_agnostic(
        rpn_proposal_matcher=PerLevel(0.7, 0.3, True),
        rpn_fg_bg_sampler=Hardest(64, 0.5),
        box_fg_bg_sampler=Hardest(64, 0.5),
        rpn_loss_box_reg=rpn_loss,
        box_loss_box_reg=box_loss,
    ).eval()
    with torch.no_grad():
        stages = model.run_stages(images()[:1])
    sample = training_sample(model, images()[0], targets()[0], stages)
    assert sample.losses["loss_box_reg"] > 0 and sample.masks is not None
    assert all(share is not None for share in sample.shares.values())


def test_the_check_of_a_loss_gives_it_what_it_asks_for() -> None:
    def loss(deltas: Tensor, labels: Tensor, anchors: Tensor, box_coder: BoxCoder) -> Tensor:
        return (box_coder.decode(deltas, anchors) - anchors).abs().sum()

    assert float(check_of_loss.call(loss, torch.zeros(5, 4), torch.ones(5))) < 1e-2


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


class Shift(nn.Module):
    """Moves each proposal to the right by as many pixels as it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Parameter(torch.tensor(3.0))

    def forward(self, features: Any, proposals: Proposals, padded_size: Any) -> Proposals:
        moved = proposals.boxes + self.pixels * torch.tensor([1.0, 0, 1, 0])
        boxes = moved.clamp(max=padded_size[1]).where(proposals.valid[..., None], 0)
        return Proposals(boxes, proposals.scores, proposals.counts, proposals.anchor_indices)

    def losses(
        self, features: Any, proposals: Proposals, padded_size: Any, targets: Any, generator: Any
    ) -> tuple[dict[str, Tensor], Proposals]:
        with torch.no_grad():
            moved = self(features, proposals, padded_size)
        return {"loss_shift": self.pixels.square()}, moved


def test_refine_moves_the_proposals() -> None:
    usual, model = build(), build(refine=Shift())
    assert train(model).keys() - train(usual).keys() == {"loss_shift"}
    assert model.roi_heads.refine.pixels.grad == 6  # type: ignore[union-attr]
    with torch.no_grad():
        stages = model.eval().run_stages(images())
        moved = model.roi_heads.refine(stages.features, stages.proposals, (96, 96))  # type: ignore[misc]
        features = usual.eval().run_stages(images()).features
        logits, _, _ = usual.roi_heads.detect_boxes(features, moved, stages.images)
        assert torch.equal(stages.class_logits, logits)
        model.roi_heads.refine.pixels.zero_()  # type: ignore[union-attr, operator]
    for one, other in zip(detect(model), detect(usual), strict=True):
        assert len(one["boxes"]) > 0 and torch.equal(one["boxes"], other["boxes"])
    optimize(model)


def test_keypoints_are_resized_as_torchvision_does() -> None:
    reference = pytest.importorskip("torchvision.models.detection.transform")
    keypoints = torch.rand(2, 5, 3) * 60
    target = {**targets()[0], "keypoints": keypoints}
    image = images()[0]
    for min_size in (64, 100):
        ours = GeneralizedRCNNTransform(min_size, 1000, [0.5] * 3, [0.5] * 3)
        theirs = reference.GeneralizedRCNNTransform(min_size, 1000, [0.5] * 3, [0.5] * 3)
        resized, expected = ours([image], [target])[1], theirs([image], [dict(target)])[1]
        assert resized is not None
        torch.testing.assert_close(resized[0]["keypoints"], expected[0]["keypoints"])
    assert torch.equal(target["keypoints"], keypoints)


def test_parts_replace_those_of_the_small_models() -> None:
    predictor = FastRCNNPredictor(256, 3)
    for small in (small_maskrcnn, small_fasterrcnn):
        model = small(3, box_predictor=predictor, norm_layer=lambda n: nn.GroupNorm(8, n))
        assert model.roi_heads.box_predictor is predictor
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
