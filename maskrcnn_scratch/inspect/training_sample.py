"""One image as a training sample: what was sampled, and the share of each sample in each loss.

Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_scratch.call_part import with_context
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.targets import SEED, rpn_targets
from maskrcnn_scratch.interfaces import BoxCoder
from maskrcnn_scratch.structures import StageOutputs, Target, list_to_rois, of_classes
from maskrcnn_scratch.targets.roi_targets import project_masks_on_boxes, select_training_samples
from maskrcnn_scratch.targets.sampler import with_generator


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """The samples of one image, as ``model.losses`` in eval mode draws them.

    A share is a sample's part of a loss; the shares of a loss add up to it. ``shares`` holds None
    for a loss of which that is not so ("not available for this component").

    Attributes:
        losses: the five losses, as ``model.losses`` gives them.
        anchors, anchor_labels, anchor_objects: int64 ``[B]``: the sampled anchors, 1 or 0, and the
            object that each overlaps most.
        boxes, labels, objects: of the sampled proposals: ``[B, 4]``, class (0 for background)
            int64 ``[B]``, and matched object int64 ``[B]``.
        scores: class probabilities of the sampled proposals, ``[B, C]``.
        with_mask: int64: which of the sampled proposals have a mask target.
        mask_targets, masks: ``[len(with_mask), M, M]``: target and predicted probability.
        shares: by loss; for ``loss_mask`` of ``with_mask``, for the others of all samples.
    """

    losses: dict[str, float]
    anchors: Tensor
    anchor_labels: Tensor
    anchor_objects: Tensor
    boxes: Tensor
    labels: Tensor
    objects: Tensor
    scores: Tensor
    with_mask: Tensor
    mask_targets: Tensor | None
    masks: Tensor | None
    shares: dict[str, Tensor | None]


@torch.no_grad()
def training_sample(
    model: GeneralizedRCNN, image: Tensor, target: Target, stages: StageOutputs
) -> TrainingSample:
    """Draws and computes what ``model.losses([image], [target])`` does.

    Args:
        model: in eval mode.
        image: ``[3, H, W]`` in 0-1, of which ``stages`` are.
        target: with masks, if the model has a mask branch, in the pixels of ``image``.

    Raises:
        ValueError: targets that the losses refuse, naming the object.
    """
    losses = {name: float(value) for name, value in model.losses([image], [target]).items()}
    size = (image.shape[1], image.shape[2])
    generator = torch.Generator(image.device).manual_seed(SEED)
    rpn = rpn_targets(model, stages, [target], [size], generator)[0]
    anchors = torch.cat((rpn.positives, rpn.negatives))
    anchor_labels = rpn.labels[anchors]
    shares = {
        "loss_objectness": loss_shares(
            model.rpn.loss_objectness,
            stages.objectness[0, anchors],
            anchor_labels,
            box_coder=model.rpn.box_coder,
            anchors=stages.anchors[anchors],
        ),
        "loss_rpn_box_reg": loss_shares(
            model.rpn.loss_rpn_box_reg,
            stages.pred_bbox_deltas[0, anchors],
            anchor_labels,
            rpn.regression_targets[anchors],
            box_coder=model.rpn.box_coder,
            anchors=stages.anchors[anchors],
        ),
    }

    heads, padded_size = model.roi_heads, stages.images.padded_size
    _, resized = model.transform([image], [target])
    assert resized is not None
    proposals = model.rpn.propose(
        model.rpn.predict(stages.images, stages.features), stages.images.sizes, phase="training"
    )
    samples = select_training_samples(
        proposals,
        resized,
        heads.proposal_matcher,
        with_generator(heads.fg_bg_sampler, generator),
        heads.box_coder,
        lambda boxes: heads.predict_boxes(stages.features, list_to_rois(boxes), padded_size)[0],
    )
    drawn = samples.labels[0] >= 0
    boxes, labels = samples.proposals[0][drawn], samples.labels[0][drawn]
    objects = samples.matched_idxs[0][drawn]
    logits, deltas = heads.predict_boxes(stages.features, list_to_rois([boxes]), padded_size)
    regression_targets = samples.regression_targets[0][drawn]
    shares["loss_classifier"] = loss_shares(
        heads.loss_classifier, logits, labels, box_coder=heads.box_coder, proposals=boxes
    )
    shares["loss_box_reg"] = loss_shares(
        heads.loss_box_reg,
        deltas,
        labels,
        regression_targets,
        box_coder=heads.box_coder,
        proposals=boxes,
    )
    with_mask = (labels > 0).nonzero().squeeze(1)
    mask_targets = masks = None
    if heads.has_mask() and "masks" in resized[0] and len(with_mask):
        of_object = boxes[with_mask]
        mask_logits = heads.predict_masks(stages.features, list_to_rois([of_object]), padded_size)
        aligned = getattr(heads.mask_roi_pool, "aligned", False)
        mask_targets = project_masks_on_boxes(
            resized[0]["masks"], of_object, objects[with_mask], mask_logits.shape[-1], aligned
        )
        own = labels[with_mask]
        each = torch.arange(len(own), device=own.device)
        masks = of_classes(mask_logits, each, own).sigmoid()
        shares["loss_mask"] = loss_shares(
            heads.loss_mask,
            mask_logits,
            own,
            mask_targets,
            box_coder=heads.box_coder,
            proposals=of_object,
        )
    return TrainingSample(
        losses,
        anchors,
        anchor_labels.to(torch.int64),
        rpn.best_object[anchors],
        boxes,
        labels,
        objects,
        logits.softmax(1),
        with_mask,
        mask_targets,
        masks,
        {name: _if_they_add_up(share, losses.get(name)) for name, share in shares.items()},
    )


def loss_shares(
    loss: Callable[..., Tensor], *arguments: Tensor, box_coder: BoxCoder, **boxes: Tensor
) -> Tensor:
    """The part of each of ``B`` samples in ``loss(*arguments)``, ``[B]``.

    Computed by the loss itself, for one sample at a time; right for a mean over the samples.

    Args:
        loss: which may ask for ``box_coder`` and ``boxes``.
        arguments: ``[B, ...]`` each.
        box_coder: of the loss's stage.
        boxes: ``[B, 4]``: ``anchors`` or ``proposals``.
    """
    count = len(arguments[0])
    alone = []
    for i in range(count):
        one = {name: values[i : i + 1] for name, values in boxes.items()}
        of_sample = with_context(loss, box_coder=box_coder, **one)
        alone.append(of_sample(*(values[i : i + 1] for values in arguments)).reshape(()))
    return torch.stack(alone) / count if alone else arguments[0].new_zeros(0)


def _if_they_add_up(shares: Tensor, total: float | None) -> Tensor | None:
    if total is None:
        return None
    expected = shares.new_tensor(total)
    return shares if torch.allclose(shares.sum(), expected, rtol=1e-3, atol=1e-5) else None
