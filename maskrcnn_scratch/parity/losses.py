"""Checks of training: the five losses, the gradient of every parameter, twenty steps of SGD.

torchvision runs first. Our model gets its proposals and its sampled anchors and proposals, as one
proposal more or less would change the losses far more than rounding does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from maskrcnn_scratch import FasterRCNN, MaskRCNN, resnet_fpn_backbone
from maskrcnn_scratch.parity.calibrate import calibrate_backbone, random_model
from maskrcnn_scratch.parity.compare import Check
from maskrcnn_scratch.parity.reference import in_channels_last, reference_of
from maskrcnn_scratch.parity.stages import pad_proposals
from maskrcnn_scratch.structures import Target
from maskrcnn_scratch.targets.sampler import ReplaySampler, Sample

Batch: TypeAlias = tuple[Sequence[Tensor], Sequence[Target]]

LOSS_TOLERANCE = 1e-5  # relative
GRADIENT_TOLERANCE = 1e-10  # relative, norm of the difference; in float64
STEPS, STEPS_TOLERANCE = 20, 1e-3
LEARNING_RATE = 1e-4  # the losses fall by a quarter; at 2e-4 rounding grows to 1e-3
SAMPLES = 64  # proposals per image
MIN_SIZE = 200  # shorter side of the resized images


class TrainingRecording:
    """The losses of one batch by torchvision's model, its proposals and its samples.

    Attributes:
        losses: the five scalars, with gradients.
        proposals: ``[P_n, 4]`` of each image, before the ground truth joins them.
        samples: what is sampled by the RPN ("rpn") and the RoI heads ("roi_heads").
    """

    def __init__(
        self, reference: GeneralizedRCNN, images: Sequence[Tensor], targets: Sequence[Target]
    ) -> None:
        self.samples: dict[str, Sample] = {}
        self.proposals: list[Tensor] = []
        stages = {"rpn": reference.rpn, "roi_heads": reference.roi_heads}
        samplers = {name: stage.fg_bg_sampler for name, stage in stages.items()}
        for name, stage in stages.items():
            stage.fg_bg_sampler = self._recorder(name, samplers[name])
        hook = reference.rpn.register_forward_hook(self._record_proposals)
        self.losses: dict[str, Tensor] = reference(list(images), [dict(t) for t in targets])
        hook.remove()
        for name, stage in stages.items():
            stage.fg_bg_sampler = samplers[name]

    def _recorder(self, name: str, sampler: Any) -> Any:
        def sample(labels: list[Tensor]) -> Any:
            self.samples[name] = sampler(labels)
            return self.samples[name]

        return sample

    def _record_proposals(self, _: Any, inputs: Any, output: Any) -> None:
        self.proposals = [boxes.clone() for boxes in output[0]]


def replayed_losses(
    model: FasterRCNN,
    images: Sequence[Tensor],
    targets: Sequence[Target],
    recording: TrainingRecording,
) -> dict[str, Tensor]:
    """Our losses on torchvision's proposals and samples."""
    samplers = model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler
    proposals = pad_proposals(recording.proposals)
    model.rpn.propose = lambda *_, **__: proposals  # type: ignore[method-assign]
    model.rpn.fg_bg_sampler = ReplaySampler([recording.samples["rpn"]])
    model.roi_heads.fg_bg_sampler = ReplaySampler([recording.samples["roi_heads"]])
    try:
        return model.losses(images, targets)
    finally:
        del model.rpn.propose  # the method again
        model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler = samplers


def losses_checks(
    norm_layer: type[nn.Module],
    batches: Sequence[Batch],
    photograph: Tensor,
    min_size: int = MIN_SIZE,
    steps: int = STEPS,
    samples: int = SAMPLES,
) -> Iterator[Check]:
    """Losses in float32, gradients in float64, and steps.

    Gradients are compared in float64. In float32, rounding changes which ReLUs are active, and so
    the gradient.

    Args:
        norm_layer: of the ResNet: ``FrozenBatchNorm2d`` or ``nn.BatchNorm2d``.
        photograph: ``[3, H, W]`` in 0-1, to calibrate the ResNet on.
        min_size: shorter side that images are resized to.
        steps: how many of SGD; each takes one of the batches, in turn.
        samples: proposals per image, of which a quarter may be positive.
    """
    model = trainable_maskrcnn(norm_layer, photograph, min_size).to(batches[0][0][0].device)
    reference = training_reference(model, samples)
    for images, targets in batches:
        name = f"{norm_layer.__name__}, {_objects(targets)} objects"
        ours, theirs = both_losses(model, reference, images, targets)
        yield loss_check(name, ours, theirs, LOSS_TOLERANCE)
    del reference
    model.double()
    reference = training_reference(model, samples)
    for images, targets in batches:
        both_losses(model, reference, *in_double(images, targets), backward=True)
        name = f"gradients, {norm_layer.__name__}, {_objects(targets)} objects"
        yield gradient_check(name, model, reference)
    del reference
    model.float().zero_grad()
    reference = training_reference(model, samples)
    yield steps_check(f"{norm_layer.__name__}, {steps} steps", model, reference, batches, steps)


def _objects(targets: Sequence[Target]) -> str:
    return "+".join(str(len(target["boxes"])) for target in targets)


def trainable_maskrcnn(
    norm_layer: type[nn.Module], photograph: Tensor, min_size: int = MIN_SIZE
) -> MaskRCNN:
    """A model as at the start of fine-tuning: a calibrated ResNet, and new FPN, RPN and heads.

    All layers are trained, so that every parameter has a gradient to compare.
    """
    max_size = min_size * 1333 // 800
    calibrated = random_model("maskrcnn_resnet50_fpn", 0, min_size=min_size, max_size=max_size)
    calibrate_backbone(calibrated, photograph)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", norm_layer=norm_layer, trainable_layers=5
        )
        model = MaskRCNN(backbone, num_classes=91, min_size=min_size, max_size=max_size)
    weights = calibrated.get_submodule("backbone.body").state_dict()
    backbone.body.load_state_dict(weights, strict=False)  # without num_batches_tracked
    return model.train()


def training_reference(model: FasterRCNN, samples: int = SAMPLES) -> GeneralizedRCNN:
    """torchvision's model, sampling fewer proposals per image than the paper, to take less time."""
    reference = in_channels_last(reference_of(model)).requires_grad_(True)
    reference.roi_heads.fg_bg_sampler.batch_size_per_image = samples
    return reference


def random_target(image: Tensor, count: int, seed: int) -> Target:
    """``count`` ellipses of random position, size and class on an image ``[3, H, W]``."""
    generator = torch.Generator().manual_seed(seed)
    height, width = image.shape[-2:]
    size = torch.tensor([width, height])
    side = size * (0.05 + 0.3 * torch.rand(count, 2, generator=generator))
    corner = (size - side) * torch.rand(count, 2, generator=generator)
    x = torch.arange(width) + 0.5
    y = torch.arange(height)[:, None] + 0.5
    center, radius = (corner + side / 2)[:, :, None, None], (side / 2)[:, :, None, None]
    inside = ((x - center[:, 0]) / radius[:, 0]) ** 2 + (
        (y - center[:, 1]) / radius[:, 1]
    ) ** 2 <= 1
    target = {
        "boxes": torch.cat((corner, corner + side), dim=1),
        "labels": torch.randint(1, 91, (count,), generator=generator),
        "masks": inside.to(torch.uint8),
    }
    return {key: value.to(image.device) for key, value in target.items()}


def in_double(images: Sequence[Tensor], targets: Sequence[Target]) -> Batch:
    """The batch in float64."""
    boxes = [{**target, "boxes": target["boxes"].double()} for target in targets]
    return [image.double() for image in images], boxes


def both_losses(
    model: FasterRCNN,
    reference: GeneralizedRCNN,
    images: Sequence[Tensor],
    targets: Sequence[Target],
    *,
    seed: int = 0,
    backward: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our losses and torchvision's, on the same samples; both models in training mode.

    Args:
        backward: also sets both models' gradients to those of the sum of the losses.

    Returns:
        the values. The activations of one model are freed before the other runs.
    """
    torch.manual_seed(seed)
    recording = TrainingRecording(reference, images, targets)
    recording.losses = _values(reference, recording.losses, backward)
    torch.manual_seed(seed)  # the transform draws a size
    ours = replayed_losses(model, images, targets, recording)
    return _values(model, ours, backward), recording.losses


def _values(model: nn.Module, losses: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    if backward:
        model.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
    return {name: loss.detach() for name, loss in losses.items()}


def steps_check(
    name: str,
    model: FasterRCNN,
    reference: GeneralizedRCNN,
    batches: Sequence[Batch],
    steps: int,
) -> Check:
    """``steps`` steps of SGD on both models from the same weights; the loss that differs most."""
    optimizers = [
        torch.optim.SGD(
            [p for p in m.parameters() if p.requires_grad], lr=LEARNING_RATE, momentum=0.9
        )
        for m in (model, reference)
    ]
    checks = []
    for step in range(steps):
        batch = batches[step % len(batches)]
        losses = both_losses(model, reference, *batch, seed=step, backward=True)
        checks.append(loss_check(name, *losses, STEPS_TOLERANCE))
        for optimizer in optimizers:
            optimizer.step()
    return max(checks, key=lambda check: check.relative)


def loss_check(
    name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float
) -> Check:
    """The loss that differs most, relative to its value."""
    words = f"{tolerance:.0e} relative"
    if list(ours) != list(theirs):
        note = f"ours are {list(ours)}, torchvision's {list(theirs)}"
        return Check("losses", name, torch.inf, torch.inf, words, False, note)
    absolute = [abs(ours[key].item() - theirs[key].item()) for key in theirs]
    relative = [
        error / max(abs(theirs[key].item()), 1e-8)
        for key, error in zip(theirs, absolute, strict=True)
    ]
    return Check("losses", name, max(absolute), max(relative), words, max(relative) <= tolerance)


def gradient_check(name: str, model: FasterRCNN, reference: GeneralizedRCNN) -> Check:
    """The parameter whose gradient differs most, by the norm of the difference."""
    theirs = dict(reference.named_parameters())
    worst, where, absolute = 0.0, "", 0.0
    for key, parameter in model.named_parameters():
        mine, other = parameter.grad, theirs[key].grad
        if (mine is None) != (other is None):
            note = f"{key} has a gradient in one of the models only"
            return Check("losses", name, torch.inf, torch.inf, "", False, note)
        if mine is None or other is None:
            continue
        error, size = float((mine - other).norm()), float(other.norm())
        if error > 0 and error / max(size, 1e-12) > worst:
            worst, where, absolute = error / max(size, 1e-12), key, error
    passed = worst <= GRADIENT_TOLERANCE
    tolerance = f"{GRADIENT_TOLERANCE:.0e} relative"
    return Check("losses", name, absolute, worst, tolerance, passed, where)
