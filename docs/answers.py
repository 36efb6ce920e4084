"""Answers to the exercises of the tour, computed on the model at hand.

python docs/answers.py 4a        one answer
python docs/answers.py           the list
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tour_helpers import held_out, photograph, shapes, stages, trained, winograd_error

from maskrcnn_scratch import maskrcnn_resnet50_fpn
from maskrcnn_scratch.backbone import FeaturePyramidNetwork
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.conventions import Conventions, paste_masks_subpixel
from maskrcnn_scratch.evaluation.model_results import evaluate_model
from maskrcnn_scratch.inference.winograd import reason_to_keep
from maskrcnn_scratch.mask_rcnn import MaskRCNN
from maskrcnn_scratch.ops import batched_nms_padded, roi_align
from maskrcnn_scratch.ops.boxes import BoxCoder, box_iou
from maskrcnn_scratch.rpn.anchors import anchors_of_location
from maskrcnn_scratch.structures import StageOutputs
from maskrcnn_scratch.targets.matcher import Matcher
from maskrcnn_scratch.transform import GeneralizedRCNNTransform

ANSWERS: dict[str, Callable[[], None]] = {}
IMAGES = 40


def answer(number: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def keep(function: Callable[[], None]) -> Callable[[], None]:
        ANSWERS[number] = function
        return function

    return keep


def model() -> MaskRCNN:
    """A copy of the trained model, to change."""
    return copy.deepcopy(trained().model)


def ap(changed: MaskRCNN) -> str:
    scores = evaluate_model(changed, held_out(IMAGES))
    return ", ".join(f"{kind} AP {score.stats[0]:.3f}" for kind, score in scores.items())


@torch.no_grad()
def all_stages(changed: MaskRCNN | None = None) -> list[StageOutputs]:
    changed = changed or trained().model
    return [changed.run_stages([image]) for image, _ in held_out(IMAGES)]


def found(changed: MaskRCNN) -> str:
    """How many objects have a detection of their class with a score and an IoU above 0.5."""
    hits = objects = 0
    for (_, target), s in zip(held_out(IMAGES), all_stages(changed), strict=True):
        result = {k: v[s.results[0]["scores"] > 0.5] for k, v in s.results[0].items()}
        iou = box_iou(target["boxes"], result["boxes"])
        same = target["labels"][:, None] == result["labels"]
        objects += len(target["labels"])
        if iou.numel():
            hits += int(((iou > 0.5) & same).any(1).sum())
    return f"{hits} of {objects} objects"


@answer("1a")
def strip() -> None:
    choices = Conventions.torchvision()
    transform = GeneralizedRCNNTransform(800, 1333, choices.image_mean, choices.image_std).eval()
    batch, _ = transform([torch.rand(3, 20, 400)])
    height, width = batch.sizes[0].tolist()
    padded_height, padded_width = batch.padded_size
    padding = 1 - height * width / (padded_height * padded_width)
    print(f"The longer side decides: {height} x {width}, padded to {padded_height} x")
    print(f"{padded_width}; {padding:.0%} of the batch is padding.")


@answer("1b")
def antialias() -> None:
    image = photograph()[None]
    quick, averaged = (
        F.interpolate(image, scale_factor=0.25, mode="bilinear", antialias=flag)
        for flag in (False, True)
    )
    difference = (quick - averaged).abs()
    print(f"By {float(difference.mean()) * 255:.1f} of 255 grey levels on average, and up to")
    print(f"{float(difference.max()) * 255:.0f}: fine texture is aliased. Weights are used to it.")


@answer("2a")
def parameters() -> None:
    body = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).get_submodule("backbone.body")
    work: dict[str, float] = {}

    def count(layer: nn.Conv2d, _: object, output: Tensor, stage: str) -> None:
        work[stage] = work.get(stage, 0) + output.numel() * layer.weight[0].numel()

    for name, layer in body.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(partial(count, stage=name.split(".")[0]))
    with torch.no_grad():
        body.eval()(torch.zeros(1, 3, 800, 1200))
    for stage, multiplications in work.items():
        number = sum(p.numel() for p in body.get_submodule(stage).parameters())
        print(f"{stage:7} {number / 1e6:6.2f} M parameters {multiplications / 1e9:6.1f} G products")
    print("Parameters grow with every stage, the work per stage hardly does: half the resolution,")
    print("twice the channels.")


@answer("2b")
def own_statistics() -> None:
    image, _ = shapes()
    changed = model()
    batch, _ = changed.transform([image])
    before = changed.backbone(batch.tensors)
    for layer in changed.backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.momentum = 1.0
    with torch.no_grad():
        changed.backbone(batch.tensors)  # takes this image's statistics over
        after = changed.eval().backbone(batch.tensors)
    for name in before:
        error = (after[name] - before[name]).norm() / before[name].norm()
        print(f"P{'6' if name == 'pool' else int(name) + 2}: changed by {error.item():.0%}")
    print(f"Before {found(model())} are found, with the statistics of one image {found(changed)}.")


@answer("3a")
def without_top_down() -> None:
    changed = model()

    class NoTopDown(FeaturePyramidNetwork):
        def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
            pyramid = [
                layer(inner(stage))
                for layer, inner, stage in zip(
                    self.layer_blocks, self.inner_blocks, x.values(), strict=True
                )
            ]
            levels, names = self.extra_blocks(pyramid, list(x.values()), list(x))
            return dict(zip(names, levels, strict=True))

    changed.backbone.fpn.__class__ = NoTopDown
    print(f"With the pyramid {found(model())}, without the top-down addition {found(changed)}.")
    print("The weights were trained with it; a model trained without would adapt to some degree.")


@answer("3b")
@torch.no_grad()
def share_of_backbone() -> None:
    big = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    image = torch.rand(3, 800, 1200)
    batch, _ = big.transform([image])
    big([image])
    started = time.perf_counter()
    big.extract_features(batch.tensors)
    middle = time.perf_counter()
    big([image])
    ended = time.perf_counter()
    part = (middle - started) / (ended - middle)
    print(f"{middle - started:.2f} of {ended - middle:.2f} s, {part:.0%} (one run, ResNet-50).")


@answer("4a")
def unreached() -> None:
    anchors = stages().anchors
    best = torch.cat([box_iou(t["boxes"], anchors).amax(1) for _, t in held_out(IMAGES)])
    print(f"Of {len(best)} objects {int((best < 0.7).sum())} have no anchor with an IoU of 0.7,")
    print(f"and {int((best < 0.3).sum())} none with 0.3; the lowest best IoU is {best.min():.2f}.")


@answer("4b")
def one_ratio() -> None:
    anchors = stages().anchors
    squares = anchors.reshape(-1, 3, 4)[:, 1]  # ratios 0.5, 1, 2 stand at each location
    assert torch.equal(squares[0], anchors_of_location((16,), (1.0,))[0])
    means = [
        torch.cat([box_iou(t["boxes"], some).amax(1) for _, t in held_out(IMAGES)]).mean()
        for some in (anchors, squares)
    ]
    print(f"The mean goes from {means[0]:.3f} to {means[1]:.3f}. These shapes are nearly square;")
    print("the boxes of standing people are not.")


@answer("5a")
def objectness() -> None:
    above = int((stages().objectness[0].sigmoid() > 0.5).sum())
    print(f"{above} anchors for {len(shapes()[1]['labels'])} objects: neighbours say the same, and")
    print("NMS is there to choose.")


@answer("5b")
@torch.no_grad()
def shifted() -> None:
    image, _ = shapes()
    before, after = stages(), trained().model.run_stages([image.roll((2, 2), (1, 2))])
    first = 0
    for n, level in enumerate(before.features.values()):
        count = level.shape[-2] * level.shape[-1] * 3
        old, new = (s.objectness[0, first : first + count].sigmoid().max() for s in (before, after))
        print(f"P{n + 2}: {old:.3f} -> {new:.3f}")
        first += count
    print(
        "Convolutions with a stride are not invariant to such a shift. How much it matters depends"
    )
    print("depends on where the object lies on the grid of the level that finds it.")


@answer("6a")
def spread() -> None:
    deltas = []
    for (_, target), s in zip(held_out(IMAGES), all_stages(), strict=True):
        boxes = s.proposals.to_list()[0]
        iou, match = box_iou(target["boxes"], boxes).max(0)
        near = iou >= 0.5
        coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        deltas.append(coder.encode(target["boxes"][match[near]], boxes[near]))
    std = torch.cat(deltas).std(0)
    weighted = std * torch.tensor([10.0, 10, 5, 5])
    print("standard deviations dx, dy, dw, dh:", [round(x, 3) for x in std.tolist()])
    print("times (10, 10, 5, 5):              ", [round(x, 2) for x in weighted.tolist()])


@answer("6b")
@torch.no_grad()
def untrained() -> None:
    fresh = small_maskrcnn(4, min_size=128, max_size=128).eval()
    s = fresh.run_stages([shapes()[0]])
    deltas = s.pred_bbox_deltas[0]
    iou = box_iou(BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(deltas[:500], s.anchors[:500]), s.anchors)
    own = iou[torch.arange(500), torch.arange(500)]
    print(f"Deltas of about {deltas.abs().mean():.4f}, as the weights are drawn with a standard")
    print(f"deviation of 0.01: boxes equal their anchors up to an IoU of {own.mean():.3f}.")


@answer("7a")
def loose_nms() -> None:
    for threshold in (0.7, 0.9):
        changed = model()
        changed.rpn.nms_thresh = threshold
        useful = proposals = 0
        for (_, target), s in zip(held_out(IMAGES), all_stages(changed), strict=True):
            boxes = s.proposals.to_list()[0]
            useful += int((box_iou(target["boxes"], boxes).amax(0) >= 0.5).sum())
            proposals += len(boxes)
        print(f"{threshold}: {useful} of {proposals} proposals overlap an object; {ap(changed)}")
    print("More proposals per object, which the second NMS has to choose from.")


@answer("7b")
def how_far_down() -> None:
    s, (_, target) = stages(), shapes()
    iou = box_iou(target["boxes"], s.proposals.to_list()[0])
    ranks = [(row >= 0.5).nonzero()[:1].flatten().tolist() for row in iou]
    print("Rank of each object's first proposal with IoU >= 0.5, from 0:", ranks)


@answer("8a")
def aligned() -> None:
    changed = model()
    for pool in (changed.roi_heads.box_roi_pool, changed.roi_heads.mask_roi_pool):
        pool.aligned = True
    moved, lost = [], 0
    for before, after in zip(all_stages(), all_stages(changed), strict=True):
        old, new = before.results[0], after.results[0]
        sure = old["scores"] > 0.5
        iou = box_iou(old["boxes"][sure], new["boxes"])
        iou[old["labels"][sure][:, None] != new["labels"]] = 0
        for box, row in zip(old["boxes"][sure], iou, strict=True):
            if row.max() < 0.5:
                lost += 1
            else:
                moved.append((new["boxes"][row.argmax()] - box).abs().mean())
    print(f"Of the detections above 0.5 {lost} are lost; the others move by "
          f"{torch.stack(moved).mean():.2f} pixels on average.")  # fmt: skip
    print(f"{ap(model())} -> {ap(changed)}: weights want the convention they were trained with.")


@answer("8b")
def samples() -> None:
    s = stages()
    feature, boxes = s.features["0"], s.detections.boxes[0, : s.detections.counts[0]]
    exact = roi_align(feature, [boxes], (7, 7), 0.25, 8)
    for ratio in (1, 2):
        pooled = roi_align(feature, [boxes], (7, 7), 0.25, ratio)
        error = (pooled - exact).norm() / exact.norm()
        print(f"{ratio} x {ratio} samples: {float(error):.1%} off")


@answer("9a")
def class_agnostic() -> None:
    def nms(boxes: Tensor, scores: Tensor, groups: Tensor, *rest: float) -> tuple[Tensor, Tensor]:
        iou_threshold, max_out, _ = rest
        return batched_nms_padded(
            boxes, scores, torch.zeros_like(groups), iou_threshold, int(max_out), 1
        )

    changed = model()
    changed.roi_heads.nms = nms
    counts = [sum(int(s.detections.counts) for s in all_stages(m)) for m in (model(), changed)]
    print(f"{counts[0]} -> {counts[1]} detections: second opinions on the same box disappear.")
    print(f"{ap(model())} -> {ap(changed)}")


@answer("9b")
def several() -> None:
    twice = total = 0
    for s in all_stages():
        parents = s.detections.proposal_indices[0, : s.detections.counts[0]]
        total += len(parents.unique())
        twice += int((parents.bincount() > 1).sum())
    print(f"{twice} of {total} proposals: each class is decided on its own.")


@answer("10a")
def subpixel() -> None:
    changed = model()
    changed.transform.paste = paste_masks_subpixel
    print(f"{ap(model())} -> {ap(changed)}")
    print("The same masks, placed without rounding.")


@answer("10b")
@torch.no_grad()
def other_classes() -> None:
    s, heads = stages(), trained().model.roi_heads
    rois = torch.cat((torch.zeros(1, 1), s.detections.boxes[0, :1]), 1)
    masks = heads.predict_masks(s.features, rois, s.images.padded_size)[0].sigmoid() > 0.5
    label = int(s.detections.labels[0, 0])
    for other, name in trained().class_names.items():
        both, either = (masks[other] & masks[label]).sum(), (masks[other] | masks[label]).sum()
        print(
            f"{name:9} IoU with the predicted class's mask {float(both / either.clamp(min=1)):.2f}"
        )
    print("Each class draws its own idea of the object; the background channel is never trained.")


@answer("11a")
def low_quality() -> None:
    anchors = stages().anchors
    strict, shown = Matcher(0.7, 0.3, allow_low_quality_matches=False), 0
    for n, (_, target) in enumerate(held_out(IMAGES)):
        matched = strict(target["boxes"], anchors)
        best = box_iou(target["boxes"], anchors).amax(1)
        for g, box in enumerate(target["boxes"]):
            if not (matched == g).any() and shown < 8:
                width, height = (box[2:] - box[:2]).tolist()
                print(f"image {n}, object {g}: {height:.0f} x {width:.0f}, best IoU {best[g]:.2f}")
                shown += 1
    print("Their size or shape lies between those of the anchors, so that no IoU reaches 0.7.")


@answer("11b")
def refinement() -> None:
    before, after = [], []
    for (_, target), s in zip(held_out(IMAGES), all_stages(), strict=True):
        match = trained().model.rpn.proposal_matcher(target["boxes"], s.anchors)
        positive = (match >= 0).nonzero().flatten()
        gt = target["boxes"][match[positive]]
        decoded = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(
            s.pred_bbox_deltas[0, positive], s.anchors[positive]
        )
        rows = torch.arange(len(positive))
        before.append(box_iou(s.anchors[positive], gt)[rows, rows])
        after.append(box_iou(decoded, gt)[rows, rows])
    print(f"{torch.cat(before).mean():.2f} -> {torch.cat(after).mean():.2f}")


@answer("12a")
def worst_samples() -> None:
    image, target = shapes()
    changed, shares = model(), {}
    heads = changed.roi_heads

    def classifier(class_logits: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(class_logits, labels, reduction="none", ignore_index=-1)
        worst = each.topk(max(1, len(each) // 20)).values
        shares["loss_classifier"] = float(worst.sum() / each.sum())
        return each.mean()

    def mask(logits: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
        rows = torch.arange(len(labels))
        own = logits[rows, labels.clamp(min=0)]
        each = F.binary_cross_entropy_with_logits(own, wanted, reduction="none").flatten()
        shares["loss_mask"] = float(each.topk(len(each) // 20).values.sum() / each.sum())
        return each.mean()

    heads.loss_classifier, heads.loss_mask = classifier, mask
    with torch.no_grad():
        changed.losses([image], [target])
    for name, share in shares.items():
        print(f"{name}: the worst 5% of the samples (of the pixels, for masks) have {share:.0%}")


@answer("12b")
@torch.no_grad()
def fell() -> None:
    image, target = shapes()
    torch.manual_seed(0)
    fresh = small_maskrcnn(4, min_size=128, max_size=128).eval()
    before, after = (m.losses([image], [target]) for m in (fresh, trained().model))
    for name in before:
        print(f"{name:18} {before[name]:.4f} -> {after[name]:.4f}")


@answer("13a")
def other_points() -> None:
    for a, b in (("1", "2"), ("1/2", "2"), ("1", "1/2"), ("5/8", "3/2"), ("3/4", "9/8")):
        pairs = (sign * Fraction(point) for point in (a, b) for sign in (1, -1))
        error = winograd_error((Fraction(0), *pairs))
        print(f"0, +-{a:3}, +-{b:3}, infinity: {error:.1e}")
    print("Powers of a point far from 1 are very large or very small; points close together need")
    print("large factors.")


@answer("13b")
@torch.no_grad()
def saved_products() -> None:
    big = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    layers = [m for m in big.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
    saved = {m for m in layers if isinstance(m, nn.Conv2d) and reason_to_keep(m) is None}
    products: dict[str, float] = {}

    def add(name: str, count: float) -> None:
        products[name] = products.get(name, 0) + count

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        direct = output.numel() * weight.numel() / output.shape[1]
        if isinstance(layer, nn.ConvTranspose2d):
            direct /= layer.stride[0] ** 2  # its filters do not overlap
        add("direct sums", direct)
        add("of them in 3x3 convolutions of stride 1", direct * (layer in saved))
        for m in (2, 4):
            if layer in saved:
                rows, columns = (-(-size // m) for size in output.shape[2:])
                direct = len(output) * rows * columns * (m + 2) ** 2 * weight[:, :, 0, 0].numel()
            add(f"with F({m}x{m}, 3x3)", direct)

    for layer in layers:
        layer.register_forward_hook(count)
    batch, _ = big.transform([torch.rand(3, 800, 1200)])
    features = big.extract_features(batch.tensors)
    big.rpn.head(list(features.values()))
    big.roi_heads.box_predictor(big.roi_heads.box_head(torch.zeros(1000, 256, 7, 7)))
    big.roi_heads.mask_predictor(big.roi_heads.mask_head(torch.zeros(100, 256, 14, 14)))
    for name, number in products.items():
        print(f"{name}: {number / 1e9:.0f} G")


def main(arguments: list[str]) -> int:
    if len(arguments) == 1 and arguments[0] in ANSWERS:
        ANSWERS[arguments[0]]()
        return 0
    print(f"usage: python docs/answers.py NUMBER, one of {', '.join(ANSWERS)}")
    return int(bool(arguments)) * 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
