"""Checks of a part inside a model: detections, losses, gradients, ``optimize``, training.

Shapes: see ``structures``.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch.component_check.common import (
    TOLERANCE,
    require_equal,
    require_finite,
    require_tensor,
)
from maskrcnn_scratch.component_check.host import images_and_targets, without_objects
from maskrcnn_scratch.component_check.result import (
    CheckResult,
    NotApplicable,
    outcome,
    require,
)
from maskrcnn_scratch.component_check.subject import relative_error, shapes
from maskrcnn_scratch.evaluation.model_results import coco_results
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inference.optimize import optimize
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.roi_heads.branches import outputs_of_branches
from maskrcnn_scratch.structures import Result

OPTIMIZE_TOLERANCE = 1e-3  # rounding is 1e-6; a wrong folding moved features by 0.26 and more
TRAINING_STEPS = 50
LOSS_FALLS_TO = 0.8  # of the first five steps, in the mean of the last ten


def model_checks(model: GeneralizedRCNN, side: int, part: Any) -> Iterator[CheckResult]:
    """Runs ``model``, in eval mode, on generated shapes.

    Args:
        side: of the images, in pixels.
        part: what was put into the model; its parameters must get gradients.
    """
    yield outcome("model: detections", lambda: detections(model, side))
    yield outcome("model: batch independence", lambda: images_are_independent(model, side))
    yield outcome("model: losses", lambda: losses_and_gradients(model, side, part, True))
    yield outcome("model: losses, zero objects", lambda: losses_and_gradients(model, side, part))
    yield outcome("model: deterministic losses", lambda: losses_repeat(model, side))
    yield outcome("model: deepcopy, pickle", lambda: model_is_copied(model, side))
    yield outcome("model: state_dict", lambda: state_dict_loads(model, side))
    yield outcome("model: masks as RLE, COCO results", lambda: survives_rle(model, side))
    yield outcome("model: optimize", lambda: optimize_agrees(model, side))


@torch.no_grad()
def detections(model: GeneralizedRCNN, side: int) -> str:
    """Batches of 1 and 3, two sizes and odd ones."""
    images, _ = images_and_targets(3, side, num_classes(model))
    odd = [images[0][:, :-27, :-6], images[1], images[2][:, 3:, : side // 2 + 1]]
    counts = []
    for batch in (images[:1], odd, odd[:1], odd[2:]):
        results = model(batch)
        require(
            isinstance(results, list) and len(results) == len(batch),
            f"{len(batch)} images give {shapes(results)}",
        )
        for image, result in zip(batch, results, strict=True):
            well_formed(result, image, num_classes(model))
            counts.append(len(result["scores"]))
    return f"{counts} detections in images of {side}, {side - 27} x {side - 6}, ... pixels"


def well_formed(result: Result, image: Tensor, classes: int) -> None:
    """Raises ``CheckFailed`` unless ``result`` is what torchvision returns for ``image``."""
    height, width = image.shape[-2:]
    count = len(result["scores"])
    require_tensor(result["boxes"], "boxes", (count, 4))
    require_tensor(result["labels"], "labels", (count,), torch.int64)
    require_tensor(result["scores"], "scores", (count,))
    if "masks" in result:
        require_tensor(result["masks"], "masks", (count, 1, height, width))
    require_finite(result, "a result")
    if count == 0:
        return
    boxes, scores, labels = result["boxes"], result["scores"], result["labels"]
    limits = torch.tensor([width, height, width, height])
    require(
        bool((boxes >= 0).all() and (boxes <= limits * (1 + 1e-5)).all()),
        f"boxes reach from {boxes.min():.1f} to {boxes.max():.1f} in an image of "
        f"{height} x {width}",
    )
    require(bool((scores[:-1] >= scores[1:]).all()), f"scores are not best first: {scores[:5]}")
    require(
        bool((labels >= 1).all() and (labels < classes).all()),
        f"labels are {labels.unique().tolist()}, expected 1 to {classes - 1}",
    )


@torch.no_grad()
def images_are_independent(model: GeneralizedRCNN, side: int) -> str:
    """Features and logits of an image do not depend on the images beside it."""
    images, _ = images_and_targets(3, side, num_classes(model))
    together = features_and_logits(model, images)
    alone = features_and_logits(model, images[2:])
    errors = {name: relative_error(together[name][2:], alone[name]) for name in alone}
    name, worst = max(errors.items(), key=lambda item: item[1])
    require(
        worst <= TOLERANCE,
        f"{name} of an image differs by {worst:.1e} of its norm between batches of 3 and 1",
    )
    return f"batches of 3 and 1 differ by {worst:.0e} at most, in {name}"


def losses_and_gradients(
    model: GeneralizedRCNN, side: int, part: Any, with_objects: bool = False
) -> str:
    """Losses are finite scalars, and each trainable parameter of the part gets a gradient."""
    images, targets = images_and_targets(2, side, num_classes(model))
    if not with_objects:
        targets = [without_objects(target) for target in targets]
    model.train()
    model.zero_grad()
    try:
        losses = model.losses(images, targets)
        for name, loss in losses.items():
            require_tensor(loss, name, ())
            require_finite(loss, f"{name} is {loss.item()}")
            require(loss.requires_grad, f"{name} has no gradient")
        sum(losses.values(), start=torch.zeros(())).backward()
        check_gradients(part)
    finally:
        model.eval()
        model.zero_grad()
    return ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())


def check_gradients(part: Any) -> None:
    """Raises ``CheckFailed`` if a trainable parameter has no gradient, or one that is not finite.

    ``DistributedDataParallel`` stops at a parameter without gradient.
    """
    if not isinstance(part, nn.Module):
        return
    trained = {name: value for name, value in part.named_parameters() if value.requires_grad}
    without = [name for name, value in trained.items() if value.grad is None]
    require(not without, f"no gradient reaches {', '.join(without[:5])}: unused parameters")
    for name, value in trained.items():
        assert value.grad is not None
        require_finite(value.grad, f"the gradient of {name}")


def losses_repeat(model: GeneralizedRCNN, side: int) -> str:
    """The same seed gives the same losses."""
    images, targets = images_and_targets(2, side, num_classes(model))
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(model.losses(images, targets))
    require_equal(found[1], found[0], "the losses of a second call with the same seed")
    return ""


@torch.no_grad()
def model_is_copied(model: GeneralizedRCNN, side: int) -> str:
    """Copies of the model give the same features and logits."""
    images, _ = images_and_targets(1, side, num_classes(model))
    expected = features_and_logits(model, images)
    for name, other in (
        ("deepcopy", copy.deepcopy(model)),
        ("pickle", pickle.loads(pickle.dumps(model))),
    ):
        require_equal(features_and_logits(other, images), expected, f"the {name} of the model")
    return ""


@torch.no_grad()
def state_dict_loads(model: GeneralizedRCNN, side: int) -> str:
    """A copy with other weights that loads the state_dict gives the same features and logits."""
    images, _ = images_and_targets(1, side, num_classes(model))
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(model.state_dict())
    expected = features_and_logits(model, images)
    require_equal(features_and_logits(other, images), expected, "the model with the state_dict")
    return f"{len(expected)} outputs agree"


@torch.no_grad()
def survives_rle(model: GeneralizedRCNN, side: int) -> str:
    """Masks survive run-length encoding, and results can be written as JSON."""
    images, _ = images_and_targets(1, side, num_classes(model))
    (result,) = model(images)
    if "masks" not in result:
        raise NotApplicable("the model has no mask branch")
    masks = result["masks"][:, 0] > 0.5  # [D, H, W]
    encoded = [rle.encode(mask.numpy()) for mask in masks]
    for index, (mask, code) in enumerate(zip(masks, encoded, strict=True)):
        same = torch.equal(torch.from_numpy(rle.decode(code)) > 0, mask)
        require(same, f"mask {index} differs after run-length encoding")
    categories = {label: label for label in range(num_classes(model))}
    lost = sorted(outputs_of_branches(result))
    kept = {name: value for name, value in result.items() if name not in lost}
    json.dumps(coco_results({**kept, "masks": encoded}, 1, categories), allow_nan=False)
    return f"{len(masks)} masks" + (f"; COCO results have no {', '.join(lost)}" if lost else "")


@torch.no_grad()
def optimize_agrees(model: GeneralizedRCNN, side: int) -> str:
    """``optimize`` keeps features and logits, and every output."""
    images, _ = images_and_targets(1, side, num_classes(model))
    model = with_random_batch_norms(model)
    before, keys = features_and_logits(model, images), model(images)[0].keys()
    faster = optimize(model)
    worst = compare_outputs(features_and_logits(faster, images), before, OPTIMIZE_TOLERANCE)
    lost = keys - faster(images)[0].keys()
    require(not lost, f"optimize loses the outputs {sorted(lost)}")
    return worst


def compare_outputs(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float) -> str:
    """Names the largest relative error; raises ``CheckFailed`` at the first beyond ``limit``."""
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    for name, error in errors.items():
        require(error <= limit, f"{name} differs by {error:.1e} of its norm, allowed {limit:.0e}")
    name, worst = max(errors.items(), key=lambda item: item[1])
    return f"{name} differs by {worst:.0e} of its norm"


def with_random_batch_norms(model: GeneralizedRCNN) -> GeneralizedRCNN:
    """A copy whose batch norms change their input: those of a new model hardly do."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        mean, variance = (getattr(module, f"running_{name}", None) for name in ("mean", "var"))
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            mean.normal_(0, 0.1, generator=generator)
            variance.uniform_(0.5, 2, generator=generator)
    return model


def features_and_logits(model: GeneralizedRCNN, images: list[Tensor]) -> dict[str, Tensor]:
    """Outputs of all networks that do not depend on which proposals were selected.

    The heads get the same RoIs for every image: the whole, and its upper left quarter.
    """
    stages = model.run_stages(images)
    features, padded_size = stages.features, stages.images.padded_size
    outputs = {f"feature map {name}": value for name, value in features.items()}
    outputs |= {"objectness": stages.objectness, "pred_bbox_deltas": stages.pred_bbox_deltas}
    height, width = padded_size
    rois = torch.tensor(
        [[n, 0, 0, width / part, height / part] for n in range(len(images)) for part in (1, 2)]
    )  # [R, 5]
    heads = model.roi_heads
    logits, deltas = heads.predict_boxes(features, rois, padded_size)
    outputs |= {"class_logits": logits, "box_regression": deltas}
    if heads.has_mask():
        outputs["mask_logits"] = heads.predict_masks(features, rois, padded_size)
    # One row per image.
    return {name: value.reshape(len(images), -1) for name, value in outputs.items()}


def num_classes(model: GeneralizedRCNN) -> int:
    """``C``; where the box predictor has other names, from one prediction."""
    known = model.roi_heads.num_classes()
    if known is not None:
        return known
    with torch.no_grad():
        return model.run_stages([torch.zeros(3, 64, 64)]).class_logits.shape[-1]


def loss_falls(build: Callable[[], GeneralizedRCNN], side: int) -> str:
    """Trains on generated shapes; the mean loss must fall below ``LOSS_FALLS_TO`` of its start."""
    model = build().train()
    images, targets = images_and_targets(16, side, num_classes(model))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    totals = []
    for step in range(TRAINING_STEPS):
        two = [2 * step % 16, (2 * step + 1) % 16]
        losses = model.losses([images[n] for n in two], [targets[n] for n in two])
        total = sum(losses.values(), start=torch.zeros(()))
        require_finite(total, f"the loss of step {step} is {total.item()}")
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(trained, 5)
        optimizer.step()
        totals.append(total.item())
    first, last = fmean(totals[:5]), fmean(totals[-10:])
    detail = (
        f"mean loss of the first 5 of {TRAINING_STEPS} steps {first:.2f}, the last 10 {last:.2f}"
    )
    require(
        last <= LOSS_FALLS_TO * first, f"{detail}: expected {LOSS_FALLS_TO * first:.2f} or less"
    )
    return detail
