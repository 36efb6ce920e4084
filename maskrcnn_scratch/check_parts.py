"""Whether the parts of a model fit together: checked when it is built, and after a replacement.

Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.jit import is_tracing  # type: ignore[attr-defined]

from maskrcnn_scratch.call_part import with_context
from maskrcnn_scratch.structures import ImageList, Proposals
from maskrcnn_scratch.targets.matcher import Matcher
from maskrcnn_scratch.targets.sampler import (
    MASK_TYPES,
    NO_SAMPLE,
    BalancedPositiveNegativeSampler,
    DeviceSampler,
    ReplaySampler,
    as_indices,
    with_generator,
)

if TYPE_CHECKING:
    from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
    from maskrcnn_scratch.roi_heads import RoIHeads

# Sides of the probe image in pixels, the smallest first: it gives every level of a ResNet-50-FPN at
# least one location. Backbones that pool or divide more need the larger ones.
PROBE_SIDES = (64, 128, 256, 512)

# Parts of the two stages that need not be modules.
_SWAPPABLE = (
    "anchor_generator", "head", "box_coder", "nms", "proposal_matcher", "fg_bg_sampler",
    "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask",
)  # fmt: skip
_OWN_SAMPLERS = (BalancedPositiveNegativeSampler, DeviceSampler, ReplaySampler)


def check_parts(model: GeneralizedRCNN) -> None:
    """Sends one small black image through all parts and checks what each of them returns.

    Nothing in the model changes, and no random number is taken from the global stream. A model of
    meta or fake tensors has no values and is not checked.

    Raises:
        ValueError: levels, channels or names that the anchor generator, the RPN head or the poolers
            do not expect; a head that cannot take the output of the part before it; class counts
            that differ; a matcher, sampler or loss whose result cannot be used.
        Exception: the backbone's own error, if it fails at each of ``PROBE_SIDES``.
    """
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.is_meta or is_fake(parameter):
        return
    modes = {module: module.training for module in model.modules()}
    model.eval()  # so that batch normalisation counts nothing
    devices = [parameter.device] if parameter.is_cuda else []
    try:
        # Outside of inference mode, in which no loss has a gradient.
        with torch.random.fork_rng(devices), torch.inference_mode(False):
            with torch.no_grad():
                images, features = probe(model)
                check_features(model, features)
                if hasattr(model.roi_heads, "box_roi_pool"):  # else a stage without these parts
                    check_heads(model.roi_heads, features, images.padded_size)
            with torch.enable_grad():
                check_training(model, images, features)
    finally:
        for module, training in modes.items():
            module.training = training
    remember_parts(model)


def check_replaced_parts(model: GeneralizedRCNN) -> None:
    """``check_parts``, if a part was replaced since the last time."""
    if torch.compiler.is_compiling() or is_tracing():
        return
    known = vars(model).get("_checked_parts", [])
    parts = _parts(model)
    if len(parts) != len(known) or any(
        one is not other for one, other in zip(parts, known, strict=True)
    ):
        check_parts(model)


def remember_parts(model: GeneralizedRCNN) -> None:
    """Marks the parts that the model has now as checked."""
    # In a list, so that nn.Module does not register them a second time.
    vars(model)["_checked_parts"] = _parts(model)


def _parts(model: GeneralizedRCNN) -> list[Any]:
    """All parts that can be replaced: modules, and functions and objects of the two stages."""
    parts: list[Any] = [model.backbone, *model.backbone.children()]  # type: ignore[attr-defined]
    for stage in (model.rpn, model.roi_heads):
        parts += [stage, *getattr(stage, "children", list)()]
        parts += [getattr(stage, name, None) for name in _SWAPPABLE]
    # One of the package's own samplers in place of another needs no check, which would synchronise.
    return [part for part in parts if type(part) not in _OWN_SAMPLERS]


def probe(model: GeneralizedRCNN, noise: bool = False) -> tuple[ImageList, dict[str, Tensor]]:
    """The smallest batch of one image that the backbone can take, and its feature maps.

    Args:
        noise: pixels are normally distributed, the same at each call, instead of black.

    Raises:
        ValueError: the backbone returns something else than maps by name.
        Exception: the backbone's own error at the largest size.
    """
    parameter = next(model.parameters())
    transform, divisor = model.transform, model.transform.size_divisible
    # fixed_size is (width, height), as in torchvision.
    sizes = [transform.fixed_size[::-1]] if transform.fixed_size else [(s, s) for s in PROBE_SIDES]
    sizes = [
        (-(-height // divisor) * divisor, -(-width // divisor) * divisor) for height, width in sizes
    ]
    for size in sizes:
        image = torch.zeros(1, len(transform.image_mean), *size)
        if noise:
            image.normal_(generator=torch.Generator().manual_seed(0))
        image = image.to(parameter.device, model.image_dtype or parameter.dtype)
        try:
            features = model.extract_features(image)
        except Exception as error:
            if size == sizes[-1]:
                error.add_note(f"the backbone fails with images of (height, width) {sizes}")
                raise
            continue
        check_output_type(features)
        if all(feature.numel() for feature in features.values()):
            break
    return ImageList(image, torch.tensor([size], device=image.device)), features


def check_output_type(features: Any) -> None:
    """Raises a ValueError if a backbone returns something else than maps by name."""
    if not isinstance(features, Mapping):
        hint = ""
        if isinstance(features, (list, tuple)):
            hint = ": name the maps, {str(i): x for i, x in enumerate(maps)}"
        raise ValueError(
            f"the backbone returns a {type(features).__name__}, expected a dict of feature maps by "
            f"name or one tensor{hint}"
        )
    for name, feature in features.items():
        if not isinstance(feature, Tensor):
            raise ValueError(
                f"the backbone's feature map {name!r} is a {type(feature).__name__}, not a tensor"
            )


def check_features(model: GeneralizedRCNN, features: Mapping[str, Tensor]) -> None:
    """Raises a ValueError if ``features`` lack channels, order or names that the model needs."""
    expected = model.backbone.out_channels
    finer: tuple[str, Tensor] | None = None
    for name, feature in features.items():
        if feature.numel() == 0:
            raise ValueError(f"the backbone's feature map {name!r} is empty: {list(feature.shape)}")
        if feature.dim() != 4 or feature.shape[1] != expected:
            raise ValueError(
                f"the backbone's feature map {name!r} has shape {list(feature.shape)}: expected "
                f"[N, {expected}, H, W], as backbone.out_channels is {expected}"
            )
        if finer is not None and feature.shape[-1] > finer[1].shape[-1]:
            raise ValueError(
                f"the backbone's feature map {name!r}, {list(feature.shape[-2:])}, is larger than "
                f"{finer[0]!r}, {list(finer[1].shape[-2:])}, before it: the finest map comes first"
            )
        finer = (name, feature)
    heads = model.roi_heads
    for part in ("box_roi_pool", "mask_roi_pool"):
        names = getattr(getattr(heads, part), "featmap_names", [])
        if names and not any(name in features for name in names):
            raise ValueError(
                f"{part} pools from {list(names)}, the backbone gives {list(features)}: none of "
                "them is there"
            )


def check_heads(
    heads: RoIHeads, features: Mapping[str, Tensor], padded_size: tuple[int, int]
) -> None:
    """Raises a ValueError that names the first part of a branch that can't take one RoI."""
    side = padded_size[0] / 2
    rois = next(iter(features.values())).new_tensor([[0, 0, 0, side, side]])
    logits, deltas = _through_branch(heads, "box", features, rois, padded_size)
    num_classes = logits.shape[1]
    if num_classes < 2 or deltas.shape[1] not in (4, 4 * num_classes):
        raise ValueError(
            f"box_predictor gives {num_classes} logits and {deltas.shape[1]} deltas: it needs at "
            "least two classes, background and one of objects, and four deltas for each or for "
            "all of them"
        )
    if heads.has_mask():
        masks = _through_branch(heads, "mask", features, rois, padded_size)
        if masks.shape[1] not in (1, num_classes):
            raise ValueError(
                f"mask_predictor gives masks of {masks.shape[1]} classes, box_predictor logits of "
                f"{num_classes}: they must agree"
            )


def _through_branch(
    heads: RoIHeads,
    branch: str,
    features: Mapping[str, Tensor],
    rois: Tensor,
    padded_size: tuple[int, int],
) -> Any:
    """The output of the branch's predictor for ``rois [R, 5]``."""
    given: tuple[Any, ...] = (features, rois, [padded_size])
    shown = "RoIs [R, 5] (image index, x1, y1, x2, y2)"
    for name in (f"{branch}_roi_pool", f"{branch}_head", f"{branch}_predictor"):
        part = getattr(heads, name)
        try:
            output = part(*given)
        except Exception as error:
            kind = f"{type(part).__module__}.{type(part).__qualname__}"
            raise ValueError(f"{name}, a {kind}, cannot take {shown}: {error}") from error
        if isinstance(output, Tensor):
            given, shown = (output,), f"{list(output.shape)} from the part before it"
    return output


def check_training(
    model: GeneralizedRCNN, images: ImageList, features: Mapping[str, Tensor]
) -> None:
    """Raises a ValueError if anchors, matchers, samplers or losses return what cannot be used.

    One object and three proposals; the losses must depend on the feature maps.
    """
    features = {name: feature.detach().requires_grad_() for name, feature in features.items()}
    predictions = model.rpn.predict(images, features)
    expected = sum(predictions.level_sizes)
    if list(predictions.anchors.shape) != [expected, 4]:
        raise ValueError(
            f"rpn.anchor_generator gives anchors {list(predictions.anchors.shape)}, the feature "
            f"maps have room for {expected}: expected [{expected}, 4]"
        )
    side = float(images.padded_size[0])
    device = images.tensors.device
    gt_boxes = predictions.anchors.new_tensor([[side / 8, side / 8, side / 2, side / 2]])
    boxes = gt_boxes + gt_boxes.new_tensor([[0.0], [1.0], [side / 2]])  # [P, 4]
    labels = torch.ones(1, dtype=torch.int64, device=device)
    target = {"boxes": gt_boxes, "labels": labels}
    if model.roi_heads.has_mask():
        target["masks"] = torch.ones((1, *images.padded_size), dtype=torch.uint8, device=device)

    for stage, candidates in (("rpn", predictions.anchors), ("roi_heads", boxes)):
        part = getattr(model, stage)
        if (matcher := getattr(part, "proposal_matcher", None)) is not None:
            if stage == "rpn":
                matcher = with_context(matcher, level_sizes=predictions.level_sizes)
            check_matcher(f"{stage}.proposal_matcher", matcher, gt_boxes, candidates)
        sampler = getattr(part, "fg_bg_sampler", None)
        if isinstance(sampler, ReplaySampler):  # each call uses up a recorded sample
            return
        if sampler is not None:
            scores = torch.linspace(0, 1, len(candidates), device=device)
            sampler = with_context(
                sampler,
                losses=[scores],
                scores=[scores if stage == "rpn" else torch.stack((1 - scores, scores), dim=1)],
            )
            check_sampler(f"{stage}.fg_bg_sampler", sampler, len(candidates), device)

    generator = torch.Generator(device).manual_seed(0)
    check_losses("rpn", model.rpn.losses(predictions, [target], generator))
    proposals = Proposals(
        boxes=boxes[None],
        scores=torch.ones_like(boxes[None, :, 0]),
        counts=torch.tensor([len(boxes)], device=device),
        anchor_indices=torch.zeros((1, len(boxes)), dtype=torch.int64, device=device),
    )
    found = model.roi_heads.losses(features, proposals, images.padded_size, [target], generator)
    check_losses("roi_heads", found)


def check_matcher(name: str, matcher: Any, gt_boxes: Tensor, boxes: Tensor) -> None:
    """Raises a ValueError if the matches are not int64 ``[B]`` in ``[-2, G)``."""
    matched = matcher(gt_boxes, boxes)
    expected = f"expected int64 [{len(boxes)}]"
    if not isinstance(matched, Tensor) or matched.dtype != torch.int64:
        kind = matched.dtype if isinstance(matched, Tensor) else type(matched).__name__
        raise ValueError(f"{name} returns {kind}: {expected}")
    if list(matched.shape) != [len(boxes)]:
        raise ValueError(f"{name} returns shape {list(matched.shape)}: {expected}")
    low, high = (int(extreme) for extreme in matched.aminmax())
    if low < Matcher.BETWEEN_THRESHOLDS or high >= len(gt_boxes):
        raise ValueError(
            f"{name} returns indices from {low} to {high} for {len(gt_boxes)} ground-truth box: "
            f"expected {Matcher.BETWEEN_THRESHOLDS} to {len(gt_boxes) - 1}"
        )


def check_sampler(name: str, sampler: Any, num_boxes: int, device: torch.device) -> None:
    """Raises a ValueError if sampled indices repeat, or positives and negatives are mixed up."""
    labels = torch.arange(num_boxes, device=device) % 3 - 1  # ignored, negative, positive
    seeded = torch.Generator(device).manual_seed(0)
    sampled = with_generator(sampler, seeded)([labels])
    if (
        not isinstance(sampled, Sequence)
        or len(sampled) != 2
        or any(len(kind) != 1 for kind in sampled)
        or any(
            one.dtype != torch.int64 and not (one.dtype in MASK_TYPES and len(one) == num_boxes)
            for [one] in sampled
        )
    ):
        raise ValueError(
            f"{name} must return two lists, of positives and of negatives, each with a tensor per "
            f"image: int64 indices, or a uint8 or bool mask of its {num_boxes} boxes"
        )
    positive, negative = (kind[0][kind[0] != NO_SAMPLE] for kind in as_indices(sampled))
    indices = torch.cat((positive, negative))
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= num_boxes):
        raise ValueError(f"{name} returns indices outside of its {num_boxes} boxes")
    if len(indices.unique()) != len(indices):
        raise ValueError(f"{name} returns an index twice")
    if bool((labels[indices] < 0).any()):
        raise ValueError(f"{name} samples boxes whose label is to be ignored")
    if bool((labels[negative] >= 1).any()):
        raise ValueError(f"{name} returns a positive among the negatives")


def check_losses(stage: str, losses: Mapping[str, Tensor]) -> None:
    """Raises a ValueError that names a loss that is no scalar or has no gradient."""
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{stage}.{name} returns {shape}: expected a scalar tensor")
        if not loss.requires_grad:
            raise ValueError(
                f"{stage}.{name} has no gradient: its result does not depend on the predictions, "
                "or it was detached"
            )
