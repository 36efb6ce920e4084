"""Mask R-CNN (He et al. 2017), stage by stage: read this file first.

    image          -> transform      transform.py
    -> backbone, FPN                 backbone/resnet.py, fpn.py
    -> anchors, RPN, proposals       rpn/anchors.py, head.py, proposals.py
    -> RoIAlign, box head, NMS       roi_heads/pooler.py, box_head.py, detections.py
    -> RoIAlign, mask head           roi_heads/pooler.py, mask_head.py
    -> paste                         transform.py, ops/paste_masks.py

``faster_rcnn.py`` and ``mask_rcnn.py`` pick the parts; ``builders/resnet50_fpn.py`` puts them on a
ResNet-50. Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn_scratch import interfaces
from maskrcnn_scratch.roi_heads import RoIHeads
from maskrcnn_scratch.rpn import RegionProposalNetwork
from maskrcnn_scratch.structures import ImageList, Result, StageOutputs, Target
from maskrcnn_scratch.targets.check_targets import check_targets
from maskrcnn_scratch.transform import GeneralizedRCNNTransform, image_size


class GeneralizedRCNN(nn.Module):
    """A detector in stages: transform, backbone, region proposals, RoI heads.

    Args:
        backbone: see ``interfaces.Backbone``.
        rpn: says where objects may be.
        roi_heads: says what they are, where exactly, and which pixels are theirs.
        transform: makes the batch and brings the results back to the original sizes.

    ``check_target_values = False`` leaves out the one check of ``losses`` that waits for a GPU, for
    a caller who has made it before the targets went there. ``image_dtype`` is what images should
    have where it is not the dtype of the parameters (``inference.optimize``).
    """

    check_target_values = True
    image_dtype: torch.dtype | None = None

    def __init__(
        self,
        backbone: interfaces.Backbone,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
        transform: GeneralizedRCNNTransform,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Result]:
        """The losses in training mode, the detections in eval mode.

        Args:
            images: ``[3, H, W]`` floats in 0-1, sizes may differ.
            targets: one an image, needed in training mode.
        """
        if self.training:
            return self.losses(images, targets)
        return self.detect(images)

    def detect(self, images: Sequence[Tensor]) -> list[Result]:
        """What is in each image, best first, in its own pixels.

        Returns:
            for each image ``boxes`` ``[D, 4]``, ``labels`` ``[D]``, ``scores`` ``[D]`` and
            ``masks`` ``[D, 1, H, W]``, soft in 0-1 (threshold them at 0.5). ``D`` may be 0.
        """
        return self.run_stages(images).results

    def run_stages(self, images: Sequence[Tensor]) -> StageOutputs:
        """Everything ``detect`` computes on its way; ``.results`` is what it returns."""
        batch, _ = self.transform(images)  # [N, 3, H, W] and the sizes inside of the padding
        stages = self.run_batch(batch)
        original_sizes = [image_size(image) for image in images]
        stages.results = self.transform.postprocess(stages.detections, batch.sizes, original_sizes)
        return stages

    def run_batch(self, batch: ImageList) -> StageOutputs:
        """The stages from a padded batch to padded detections: all shapes fixed, no waiting."""
        features = self.extract_features(batch.tensors)  # {"0": [N, 256, H/4, W/4], ..., "pool"}
        rpn = self.rpn(batch, features)  # of each anchor: objectness [N, A], deltas [N, A, 4]
        proposals = self.rpn.propose(rpn, batch.sizes)  # boxes [N, P, 4]
        class_logits, box_regression, detections = self.roi_heads.detect_boxes(
            features, proposals, batch
        )  # [N, P, C], [N, P, C, 4], boxes [N, D, 4]
        if self.roi_heads.has_mask():
            detections.masks = self.roi_heads.detect_masks(features, detections, batch)
        return StageOutputs(
            images=batch,
            features=features,
            anchors=rpn.anchors,
            objectness=rpn.objectness,
            pred_bbox_deltas=rpn.pred_bbox_deltas,
            proposals=proposals,
            class_logits=class_logits,
            box_regression=box_regression,
            detections=detections,
            results=[],
        )

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The five losses, each a scalar; their sum is what training minimises.

        Works in eval mode too, as the validation loss: nothing in the model changes, no random
        number is taken from the global stream, and the same images give the same losses.

        Args:
            images: as in ``forward``.
            targets: one an image: ``boxes`` ``[G, 4]``, ``labels`` ``[G]`` from 1, ``masks``
                ``[G, H, W]``; ``G`` may be 0.
            generator: draws the anchors and proposals that enter the losses; by default the global
                one in training mode and a fresh one in eval mode.

        Raises:
            TypeError, ValueError: targets that make no sense, naming image and object.
        """
        self.transform.check_images(images)
        if generator is None and not self.training:
            generator = torch.Generator(images[0].device).manual_seed(0)
        check_targets(
            targets,
            [(image.shape[-2], image.shape[-1]) for image in images],
            self.roi_heads.num_classes(),
            self.roi_heads.has_mask(),
            self.check_target_values,
        )
        batch, targets = self.transform(images, targets)
        features = self.extract_features(batch.tensors)
        rpn = self.rpn(batch, features)
        proposals = self.rpn.propose(rpn, batch.sizes, phase="training")
        rpn_losses = self.rpn.losses(rpn, targets, generator)
        return {
            **self.roi_heads.losses(features, proposals, batch.padded_size, targets, generator),
            **rpn_losses,
        }

    def extract_features(self, images: Tensor) -> dict[str, Tensor]:
        """``[N, 3, H, W]`` to feature maps by name; a backbone with one map has it under "0".

        Raises:
            ValueError: images of another device or dtype than the backbone's.
        """
        parameter = next(self.parameters(), images)  # the first is the backbone's
        device, dtype = parameter.device, self.image_dtype or parameter.dtype
        if images.device != device or (
            images.dtype != dtype and not torch.is_autocast_enabled(device.type)
        ):
            raise ValueError(
                f"the images are {images.dtype} on {images.device}, the model wants {dtype} on "
                f"{device}: convert one of them"
            )
        features = self.backbone(images)
        return {"0": features} if isinstance(features, Tensor) else features
